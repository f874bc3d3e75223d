package bus

// SyncAlways reports whether the embedded server syncs every write to disk. No
// client can ask it that.
func (b *Bus) SyncAlways() bool { return b.server.JetStreamConfig().SyncAlways }
