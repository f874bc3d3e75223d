package bus

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/internal/binding"
	"github.com/hookbus/bridge/internal/failpoint"
)

// A body too large for a message is an object in the JetStream object store
// (NATS ADR-20) named by [ObjectBucket]; the message has no data and names the
// object by the CloudEvents extension dataref. Under the message's id there is a link
// to the object.
const (
	datarefHeader = "ce-dataref"
	bodiesSuffix  = "_BODIES"
	// bodiesOutlive is how much longer a body is kept than the message that
	// names it.
	bodiesOutlive = time.Hour
	// bodyTimeout bounds the upload of a body and its being read back.
	bodyTimeout = 6 * time.Second
	// readTimeout bounds one read. That of an object without parts does not end. The
	// rest is for another upload.
	readTimeout    = bodyTimeout / 2
	discardTimeout = 500 * time.Millisecond
)

// reuseWithin is the age up to which an object that is there already is used for a
// message that is published now.
var reuseWithin = bodiesOutlive / 2

// ObjectBucket returns the name of the bucket that holds the bodies of a stream
// and its quarantine that are too large for a message.
func ObjectBucket(stream string) string { return stream + bodiesSuffix }

// bodiesSpec is the stream behind the object store, laid out by NATS ADR-20. It
// keeps what is as old as age, or everything if that is 0.
func (b *Bus) bodiesSpec(age time.Duration) spec {
	if age > 0 {
		age += bodiesOutlive
	}
	bucket := ObjectBucket(b.cfg.Stream)
	c := jetstream.StreamConfig{
		Name:        "OBJ_" + bucket,
		Description: "bodies too large for a message of " + b.cfg.Stream + " or " + b.cfg.QuarantineStream,
		Subjects:    []string{"$O." + bucket + ".C.>", "$O." + bucket + ".M.>"},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      age,
		MaxBytes:    -1,
		Discard:     jetstream.DiscardNew,
		AllowRollup: true,
		AllowDirect: true,
	}
	maxAge := setting{"max_age", int64(c.MaxAge)}
	return b.spec(c, holdsBodies, map[string]setting{
		"STREAM_REPLICAS":    {"num_replicas", int64(c.Replicas)},
		"STREAM_MAX_AGE":     maxAge,
		"QUARANTINE_MAX_AGE": maxAge,
	})
}

// checkBodies looks at the object store for a stream and a quarantine as they
// are. If it is missing, only bodies too large for a message cannot be stored.
func (b *Bus) checkBodies(ctx context.Context, st *State, stream, quarantine *jetstream.StreamInfo) {
	if stream == nil || quarantine == nil {
		return
	}
	age := max(stream.Config.MaxAge, quarantine.Config.MaxAge)
	if stream.Config.MaxAge == 0 || quarantine.Config.MaxAge == 0 {
		age = 0
	}
	own := &State{refused: make(map[string]string)}
	want := b.bodiesSpec(age)
	if s := b.ensure(ctx, own, want); s != nil {
		info := s.CachedInfo()
		c := info.Config
		b.judge(own, c, "STREAM", "$O."+ObjectBucket(b.cfg.Stream)+".C")
		st.bodiesRefused = own.refused[c.Name]
		if c.MaxAge != 0 && (age == 0 || c.MaxAge < want.config.MaxAge) {
			own.warn("stream %s: it keeps bodies for %v, less than the messages that name them; nats stream edit %s --max-age %v", c.Name, c.MaxAge, c.Name, want.config.MaxAge)
		}
		if c.Replicas < stream.Config.Replicas {
			own.warn("stream %s: it has fewer replicas (%d) than %s (%d), and a 200 for a large body is worth less; %s", c.Name, c.Replicas, b.cfg.Stream, stream.Config.Replicas,
				b.set("STREAM_REPLICAS", c.Name, "--replicas %d", stream.Config.Replicas))
		}
	}
	for _, p := range own.Problems {
		own.warn("%s; bodies of more than %d bytes cannot be stored", p, b.nc.MaxPayload())
	}
	st.Warnings = append(st.Warnings, own.Warnings...)
}

// tooLarge reports whether a message was refused for its size: by the client,
// which knows the server's limit, or by the stream.
func tooLarge(err error) bool {
	return errors.Is(err, nats.ErrMaxPayload) || hasCode(err, errMessageTooLarge)
}

// moveBody stores the body of a message as an object and puts the dataref in its place.
// The object of an earlier attempt is used again. None is written over: the message of
// another attempt may name it, and of an upload that fails the client removes the parts
// but not the name.
func (b *Bus) moveBody(ctx context.Context, msg *nats.Msg) error {
	id, bucket := msg.Header.Get(jetstream.MsgIDHeader), ObjectBucket(b.cfg.Stream)
	fail := func(err error) error {
		b.Wake()
		return fmt.Errorf("%w: object store %s: %w", ErrUnavailable, bucket, err)
	}
	if reason := b.state.Load().bodiesRefused; reason != "" {
		return fail(errors.New(reason))
	}
	ctx, cancel := context.WithTimeout(ctx, bodyTimeout)
	defer cancel()
	store, err := b.js.ObjectStore(ctx, bucket)
	if err != nil {
		return fail(err)
	}
	name := earlier(ctx, store, id)
	if name == "" || !hasBody(ctx, store, name, msg.Data) {
		if name, err = b.upload(ctx, store, id, msg.Data); err != nil {
			return fail(err)
		}
	}
	failpoint.Hit("object-written")
	msg.Header[datarefHeader] = []string{binding.DatarefScheme + bucket + "/" + name}
	msg.Data = nil
	return nil
}

// upload stores an object under a name of its own, links it to the id and returns the
// name. An object counts only after it was read back: the client reports success for
// objects that lack parts, or have them twice, when a leader changes meanwhile.
func (b *Bus) upload(ctx context.Context, store jetstream.ObjectStore, id string, body []byte) (string, error) {
	for {
		meta := jetstream.ObjectMeta{
			Name: id + "." + rand.Text(),
			Opts: &jetstream.ObjectMetaOptions{ChunkSize: uint32(min(128<<10, b.nc.MaxPayload()/2))},
		}
		info, err := store.Put(ctx, meta, bytes.NewReader(body))
		if err == nil && hasBody(ctx, store, meta.Name, body) {
			store.AddLink(ctx, id, info) // without it another attempt uploads again
			return meta.Name, nil
		}
		discard(ctx, store, meta.Name)
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return "", err
		}
	}
}

// earlier returns the name of the object that an earlier attempt has linked to the id;
// empty if there is none, or it would not outlive a message of now.
func earlier(ctx context.Context, store jetstream.ObjectStore, id string) string {
	info, err := store.GetInfo(ctx, id)
	if err != nil || time.Since(info.ModTime) >= reuseWithin {
		return ""
	}
	if info.Opts != nil && info.Opts.Link != nil {
		return info.Opts.Link.Name
	}
	return id // of an earlier version
}

// discard removes an object that no message names, as far as it can.
func discard(ctx context.Context, store jetstream.ObjectStore, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	store.Delete(ctx, name)
}

// hasBody reads an object and compares it.
func hasBody(ctx context.Context, store jetstream.ObjectStore, id string, body []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	got, err := store.GetBytes(ctx, id)
	return err == nil && bytes.Equal(got, body)
}
