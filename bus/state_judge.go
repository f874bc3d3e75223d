package bus

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

func (b *Bus) lookAtStream(st *State, info *jetstream.StreamInfo) {
	c := info.Config
	st.Durability, st.DuplicateWindow, st.atomic = b.durability(c), c.Duplicates, c.AllowAtomicPublish
	if b.judge(st, c, "STREAM", b.cfg.SubjectPrefix) {
		st.Durability = "the stream is refused: no event is stored in it"
	}
	if c.Replicas < 2 && b.server == nil {
		st.warn("stream %s: %s; %s", c.Name, b.durability(c), b.set("STREAM_REPLICAS", c.Name, "--replicas 3"))
	}
	if c.MaxAge != 0 && c.MaxAge < b.cfg.DedupeWindow {
		st.warn("stream %s: it keeps events for %v, less than the dedupe window of %v; %s", c.Name, c.MaxAge, b.cfg.DedupeWindow,
			b.set("STREAM_MAX_AGE", c.Name, "--max-age %v", max(b.cfg.StreamMaxAge, b.cfg.DedupeWindow)))
	}
	if c.Duplicates < b.cfg.DuplicateWindow {
		st.warn("stream %s: its duplicate window is %v, less than the %v asked for; %s", c.Name, c.Duplicates, b.cfg.DuplicateWindow,
			b.set("DUPLICATE_WINDOW", c.Name, "--dupe-window %v", b.cfg.DuplicateWindow))
	}
	if c.MaxMsgSize >= 0 && c.MaxMsgSize < usualHeaders {
		st.warn("stream %s: its max_msg_size of %d may be less than the headers of an event take, and then that is quarantined; nats stream edit %s --max-msg-size=-1", c.Name, c.MaxMsgSize, c.Name)
	}
	if c.DiscardNewPerSubject {
		st.warn("stream %s: discard_new_per_subject refuses events of a subject that has %d; nats stream edit %s --no-discard-per-subject --max-msgs-per-subject=-1", c.Name, c.MaxMsgsPerSubject, c.Name)
	}
	if t := c.SubjectTransform; t != nil && (t.Source == "" || server.SubjectsCollide(t.Source, b.cfg.SubjectPrefix+".>")) {
		st.warn("stream %s: its subject_transform stores events on other subjects, where their consumers do not look; take it away", c.Name)
	}
	if err := b.server.failed(c.Name); err != nil {
		st.problem("stream %s: it takes no events until the bridge starts anew: %v", c.Name, err)
	}
	switch limit, full := fullness(info); {
	case full:
		st.problem("stream %s: its %s is reached, it takes no more events; %s", c.Name, limit, b.raise("STREAM_MAX_BYTES", c.Name, limit))
	case limit != "":
		st.warn("stream %s: nine tenths of its %s are used, after that it takes no more events; %s", c.Name, limit, b.raise("STREAM_MAX_BYTES", c.Name, limit))
	}
}

// lookAtQuarantine warns of a full quarantine only: events are stored all the
// same, and whoever fills it must not take the bridge out of service.
func (b *Bus) lookAtQuarantine(st *State, info *jetstream.StreamInfo, replicas int) {
	c := info.Config
	b.judge(st, c, "QUARANTINE_STREAM", b.cfg.QuarantinePrefix)
	if c.Replicas < replicas {
		st.warn("stream %s: it has fewer replicas (%d) than %s (%d), and a 200 for what is quarantined is worth less; %s", c.Name, c.Replicas, b.cfg.Stream, replicas,
			b.set("STREAM_REPLICAS", c.Name, "--replicas %d", replicas))
	}
	if c.MaxAge == 0 && c.MaxBytes <= 0 && c.MaxMsgs <= 0 {
		st.warn("stream %s: it has no limit of age, size or count and may fill the disk that events need; %s", c.Name,
			b.set("QUARANTINE_MAX_BYTES", c.Name, "--max-bytes 1GB"))
	}
	switch limit, full := fullness(info); {
	case full:
		st.warn("stream %s: its %s is reached: what cannot be understood is not taken, and waits in the spool or is answered 503; %s", c.Name, limit, b.raise("QUARANTINE_MAX_BYTES", c.Name, limit))
	case limit != "":
		st.warn("stream %s: nine tenths of its %s are used; %s", c.Name, limit, b.raise("QUARANTINE_MAX_BYTES", c.Name, limit))
	}
}

// longestRedelivery is the age of an event at the last attempt to deliver it:
// the most patient provider (Dfns) gives up after a day.
const longestRedelivery = 25 * time.Hour

// usualHeaders is what the headers of an event take at most, as a rule; they are 1 KiB
// with what the samples hold.
const usualHeaders = 8 << 10

// room is what a message needs at least: an entry of the bucket takes 245 to 505
// bytes in its stream, with names of 64 characters and the largest numbers; an
// event of the samples takes 830 or more.
const room = 512

// lookAtBucket says what keeps the bucket from remembering names. Settings that
// make it useless are problems, as its absence is. What comes only with time, like
// a bucket that is full, is a warning: events are stored all the same.
func (b *Bus) lookAtBucket(st *State, info *jetstream.StreamInfo, replicas int) {
	c := info.Config
	problem := func(format string, args ...any) {
		st.problem("bucket %s: %s", b.cfg.Bucket, fmt.Sprintf(format, args...))
	}
	warn := func(format string, args ...any) {
		st.warn("bucket %s: %s", b.cfg.Bucket, fmt.Sprintf(format, args...))
	}
	const again = "a redelivery may be stored again"

	if stream, ours := strings.CutPrefix(c.Description, bucketOf); ours && stream != b.cfg.Stream {
		warn("it is the index of stream %s: if a bridge of that uses it, %s; set BRIDGE_DEDUPE_BUCKET to another; if none does, nats stream edit %s --description '%s'", stream, again, c.Name, bucketOf+b.cfg.Stream)
	}
	switch {
	case c.Mirror != nil:
		problem("it is a mirror and takes no names itself; %s", b.anewBucket())
	case c.Sealed:
		problem("it is sealed and takes no names; %s", b.anewBucket())
	case c.Retention == jetstream.InterestPolicy:
		problem("retention interest keeps no names; nats stream edit %s --retention limits", c.Name)
	case c.Retention == jetstream.WorkQueuePolicy:
		problem("retention workqueue keeps no names that are consumed; %s", b.anewBucket())
	case c.NoAck:
		problem("no_ack does not acknowledge names; nats stream edit %s --ack", c.Name)
	case c.DiscardNewPerSubject:
		problem("discard_new_per_subject takes no second state of a thing; nats stream edit %s --no-discard-per-subject", c.Name)
	}
	if c.Storage == jetstream.MemoryStorage {
		warn("memory storage forgets names at a restart, and then %s; %s", again, b.anewBucket())
	}
	if c.PersistMode == jetstream.AsyncPersistMode {
		warn("persist mode async may lose names in a crash, and then %s; %s", again, b.anewBucket())
	}
	if c.Discard == jetstream.DiscardOld && (c.MaxBytes > 0 || c.MaxMsgs > 0) {
		warn("it drops old names when full, and then %s; nats stream edit %s --discard new", again, c.Name)
	}
	if c.MaxMsgSize >= 0 && c.MaxMsgSize < room {
		warn("its max_msg_size of %d is less than an entry takes; nats stream edit %s --max-msg-size=-1", c.MaxMsgSize, c.Name)
	}
	if c.Replicas < replicas {
		warn("it has fewer replicas (%d) than %s (%d), and while its server is down %s; %s", c.Replicas, b.cfg.Stream, replicas, again,
			b.set("STREAM_REPLICAS", c.Name, "--replicas %d", replicas))
	}
	switch ttl := b.set("DEDUPE_WINDOW", c.Name, "--max-age %v", max(b.cfg.DedupeWindow, longestRedelivery)); {
	case c.MaxAge != 0 && c.MaxAge < b.cfg.DedupeWindow:
		warn("its TTL is %v, less than the %v asked for; %s", c.MaxAge, b.cfg.DedupeWindow, ttl)
	case c.MaxAge != 0 && c.MaxAge < longestRedelivery:
		warn("its TTL is %v, and a provider may try again for %v: then %s; %s", c.MaxAge, longestRedelivery, again, ttl)
	}
	if limit, full := fullness(info); full {
		warn("its %s is reached, it takes no more names: %s; %s", limit, again, b.raise("", c.Name, limit))
	} else if limit != "" {
		warn("nine tenths of its %s are used, after that %s; %s", limit, again, b.raise("", c.Name, limit))
	}
}

// fullness names the limit of which nine tenths are used, and reports whether
// it is reached. It gives no numbers that change: each would be another state.
func fullness(info *jetstream.StreamInfo) (limit string, full bool) {
	c, st := info.Config, info.State
	switch {
	case c.MaxBytes > 0 && st.Bytes+room > uint64(c.MaxBytes):
		return "max_bytes", true
	case c.MaxMsgs > 0 && st.Msgs >= uint64(c.MaxMsgs):
		return "max_msgs", true
	case c.MaxBytes > 0 && st.Bytes > uint64(c.MaxBytes)/10*9:
		return "max_bytes", false
	case c.MaxMsgs > 0 && st.Msgs > uint64(c.MaxMsgs)/10*9:
		return "max_msgs", false
	}
	return "", false
}

// judge refuses a stream whose settings lose what it has acknowledged, or that
// would not take our subjects, and reports whether it does. Which settings an
// existing stream can be given was seen in nats-server 2.15 (configUpdateCheck).
func (b *Bus) judge(st *State, c jetstream.StreamConfig, variable, prefix string) (refused bool) {
	delete(st.refused, c.Name)
	refuse := func(format string, args ...any) {
		reason := fmt.Sprintf("stream %s: ", c.Name) + fmt.Sprintf(format, args...)
		st.Problems = append(st.Problems, reason)
		st.refused[c.Name] = reason
		refused = true
	}
	if c.Mirror != nil { // which has no subjects either
		refuse("it is a mirror of %s and takes no events itself; set BRIDGE_%s to that, or to a new name", c.Mirror.Name, variable)
		return
	}
	if c.Sealed {
		refuse("it is sealed and takes no events; %s", b.anew(c.Name))
		return
	}
	if !covers(c.Subjects, prefix) {
		refuse("it does not take the subjects %s.>; nats stream edit %s --subjects '%s'", prefix, c.Name, withSubjects(c.Subjects, prefix))
	}
	if c.Storage == jetstream.MemoryStorage {
		refuse("memory storage does not outlive a restart; %s", b.anew(c.Name))
	}
	if c.PersistMode == jetstream.AsyncPersistMode {
		refuse("persist mode async acknowledges before it writes; %s", b.anew(c.Name))
	}
	if c.NoAck {
		refuse("no_ack does not acknowledge; nats stream edit %s --ack", c.Name)
	}
	switch c.Retention {
	case jetstream.InterestPolicy:
		refuse("retention interest removes what a consumer has acknowledged; nats stream edit %s --retention limits", c.Name)
	case jetstream.WorkQueuePolicy:
		refuse("retention workqueue removes what a consumer has acknowledged; %s", b.anew(c.Name))
	}
	if c.Discard == jetstream.DiscardOld && (c.MaxBytes > 0 || c.MaxMsgs > 0) {
		refuse("it drops old events when full; nats stream edit %s --discard new", c.Name)
	}
	if c.MaxMsgsPerSubject > 0 && !(c.Discard == jetstream.DiscardNew && c.DiscardNewPerSubject) {
		refuse("it drops old events of a subject that has max_msgs_per_subject; nats stream edit %s --max-msgs-per-subject=-1", c.Name)
	}
	return refused
}

// anew says what to do about a setting that the server does not change.
func (b *Bus) anew(stream string) string {
	s := fmt.Sprintf("the server does not change that: save what is needed, then nats stream rm %s", stream)
	if b.cfg.Manage {
		return s + ", and the bridge makes it anew"
	}
	return s + ", and make it anew"
}

// anewBucket says the same of the bucket, which holds nothing that the stream
// does not.
func (b *Bus) anewBucket() string {
	s := "the server does not change that: nats kv del " + b.cfg.Bucket
	if b.cfg.Manage {
		return s + ", and the bridge makes it anew and fills it from the stream"
	}
	return s + ", and make it anew; it is filled from the stream"
}

// set says how to change a setting that has a variable: by that, if streams are
// the bridge's, or by the flag of nats stream edit.
func (b *Bus) set(variable, stream, flag string, args ...any) string {
	s := fmt.Sprintf("nats stream edit %s ", stream) + fmt.Sprintf(flag, args...)
	if b.cfg.Manage && variable != "" {
		return fmt.Sprintf("set BRIDGE_%s, or %s", variable, s)
	}
	return s
}

// raise says how to raise a limit, of which only max_bytes may have a variable.
func (b *Bus) raise(variable, stream, limit string) string {
	if limit == "max_msgs" {
		return b.set("", stream, "--max-msgs=-1")
	}
	return b.set(variable, stream, "--max-bytes=-1 (unlimited)")
}

// withSubjects lists the subjects for nats stream edit, with ours in the place
// of those that ours includes.
func withSubjects(subjects []string, prefix string) string {
	var list []string
	for _, s := range subjects {
		if !strings.HasPrefix(s, prefix+".") {
			list = append(list, s)
		}
	}
	return strings.Join(append(list, prefix+".>"), ",")
}

// covers reports whether one of the subjects takes in all of ours, which have
// at least two tokens after the prefix.
func covers(subjects []string, prefix string) bool {
	want := strings.Split(prefix+".*.>", ".")
	return slices.ContainsFunc(subjects, func(subject string) bool {
		for i, token := range strings.Split(subject, ".") {
			switch {
			case token == ">":
				return i < len(want)
			case i >= len(want)-1 || token != "*" && token != want[i]:
				return false
			}
		}
		return false
	})
}

func (b *Bus) durability(c jetstream.StreamConfig) string {
	switch {
	case b.server != nil:
		return "a 200 means written and synced to this machine's disk, one copy"
	case c.Replicas >= 3:
		return fmt.Sprintf("a 200 means written by a majority of %d servers", c.Replicas)
	case c.Replicas == 2:
		return "a 200 means written by 2 servers; while one of them is down nothing is stored"
	default:
		return "a 200 means written by one server, which may not have synced it to disk (sync_interval: always would); 3 replicas survive the loss of a server"
	}
}
