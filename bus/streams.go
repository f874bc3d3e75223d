package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ErrNoJetStream: nobody answers for JetStream.
var ErrNoJetStream = errors.New("JetStream does not answer: it is not enabled on this server or for this account, or has no leader")

// spec says what a stream should be like.
type spec struct {
	config jetstream.StreamConfig
	holds  string // label of its metrics
	// explicit are the settings, by their names in the JetStream API, that an
	// existing stream is given too.
	explicit []setting
}

type setting struct {
	name  string
	value any // string list, whole number, or bool
}

func (b *Bus) streamSpec() spec {
	c := jetstream.StreamConfig{
		Name:        b.cfg.Stream,
		Description: "CloudEvents of the webhooks bridge",
		Subjects:    []string{b.cfg.SubjectPrefix + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      b.cfg.StreamMaxAge,
		MaxBytes:    unlimited(b.cfg.StreamMaxBytes),
		Discard:     jetstream.DiscardNew,
		Duplicates:  b.cfg.DuplicateWindow,
		AllowDirect: true,
	}
	return b.spec(c, holdsEvents, map[string]setting{
		"SUBJECT_PREFIX":   {"subjects", c.Subjects},
		"STREAM_REPLICAS":  {"num_replicas", int64(c.Replicas)},
		"STREAM_MAX_AGE":   {"max_age", int64(c.MaxAge)},
		"STREAM_MAX_BYTES": {"max_bytes", c.MaxBytes},
		"DUPLICATE_WINDOW": {"duplicate_window", int64(c.Duplicates)},
	})
}

func (b *Bus) quarantineSpec() spec {
	c := jetstream.StreamConfig{
		Name:        b.cfg.QuarantineStream,
		Description: "verified webhooks that could not be made events",
		Subjects:    []string{b.cfg.QuarantinePrefix + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    b.cfg.Replicas,
		MaxAge:      b.cfg.QuarantineMaxAge,
		MaxBytes:    unlimited(b.cfg.QuarantineMaxBytes),
		Discard:     jetstream.DiscardNew,
		Duplicates:  min(b.cfg.DuplicateWindow, b.cfg.QuarantineMaxAge),
		AllowDirect: true,
	}
	return b.spec(c, holdsQuarantine, map[string]setting{
		"QUARANTINE_PREFIX":    {"subjects", c.Subjects},
		"STREAM_REPLICAS":      {"num_replicas", int64(c.Replicas)},
		"QUARANTINE_MAX_AGE":   {"max_age", int64(c.MaxAge)},
		"QUARANTINE_MAX_BYTES": {"max_bytes", c.MaxBytes},
	})
}

// bucketOf begins the description of a bucket; the stream's name follows.
const bucketOf = "index of the events stored in "

// bucketSpec is the stream behind the key-value bucket, laid out by NATS
// ADR-8, so that every setting but ours can be kept.
func (b *Bus) bucketSpec() spec {
	c := jetstream.StreamConfig{
		Name:              "KV_" + b.cfg.Bucket,
		Description:       bucketOf + b.cfg.Stream,
		Subjects:          []string{"$KV." + b.cfg.Bucket + ".>"},
		Storage:           jetstream.FileStorage,
		Replicas:          b.cfg.Replicas,
		MaxAge:            b.cfg.DedupeWindow,
		MaxBytes:          -1,
		MaxMsgsPerSubject: 1,
		Discard:           jetstream.DiscardNew,
		Duplicates:        min(2*time.Minute, b.cfg.DedupeWindow),
		AllowRollup:       true,
		DenyDelete:        true,
		AllowDirect:       true,
	}
	return b.spec(c, holdsIndex, map[string]setting{
		"STREAM_REPLICAS": {"num_replicas", int64(c.Replicas)},
		"DEDUPE_WINDOW":   {"max_age", int64(c.MaxAge)},
	})
}

func (b *Bus) spec(c jetstream.StreamConfig, holds string, byVariable map[string]setting) spec {
	s := spec{config: c, holds: holds}
	if b.server != nil && holds != holdsQuarantine { // earlier versions did not set it
		s.config.AllowAtomicPublish = true
		s.explicit = append(s.explicit, setting{"allow_atomic", true})
	}
	for variable, setting := range byVariable {
		if b.cfg.Explicit[variable] {
			s.explicit = append(s.explicit, setting)
		}
	}
	return s
}

func unlimited(n int64) int64 {
	if n == 0 {
		return -1
	}
	return n
}

// ensure creates the stream if it is missing and gives an existing one the
// explicit settings, if it may. What it could not do it adds to st; nil means
// that there is no stream.
func (b *Bus) ensure(ctx context.Context, st *State, want spec) (found jetstream.Stream) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	name := want.config.Name
	defer func() {
		if found != nil {
			b.metrics.sawStream(want.holds, found.CachedInfo())
		}
	}()
	fail := func(err error) jetstream.Stream {
		if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded) {
			err = ErrNoJetStream
		}
		st.problem("stream %s: %v", name, err)
		return nil
	}
	stream, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		b.metrics.lostStream(name)
		if !b.cfg.Manage {
			return fail(errors.New("it does not exist, and BRIDGE_MANAGE_STREAMS is false"))
		}
		stream, err = b.js.CreateStream(ctx, want.config)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // by another replica just now
			stream, err = b.js.Stream(ctx, name)
		} else if err == nil {
			b.log.Info("created stream", "stream", name)
		}
	}
	if err != nil {
		var api *jetstream.APIError
		if n := want.config.MaxBytes; n > 0 && errors.As(err, &api) && noRoom(api) { // max_bytes is reserved at once
			variable := "STREAM_MAX_BYTES"
			if name == b.cfg.QuarantineStream {
				variable = "QUARANTINE_MAX_BYTES"
			}
			err = fmt.Errorf("%w (it is to hold %d bytes: free as much on the server's disk, or set BRIDGE_%s to less)", err, n, variable)
		}
		return fail(err)
	}
	if !b.cfg.Manage || len(want.explicit) == 0 {
		return stream
	}
	for _, s := range want.explicit { // one by one: a refused one leaves the others
		changed, err := b.update(ctx, name, s)
		if err != nil {
			st.warn("stream %s: its %s could not be changed: %v", name, s.name, err)
		} else if changed {
			b.log.Info("changed stream", "stream", name, "setting", s.name)
			key, value := name+" "+s.name, fmt.Sprint(s.value)
			if b.changed[key] == value {
				st.warn("stream %s: somebody else changes its %s, perhaps a bridge with another value; it was set back", name, s.name)
			}
			b.changed[key] = value
		}
	}
	if stream, err = b.js.Stream(ctx, name); err != nil {
		return fail(err)
	}
	return stream
}

// update gives a stream the setting if that differs. It works on the API's
// JSON, not on our library's view of it, so that settings which the library
// does not know stay as they are.
func (b *Bus) update(ctx context.Context, name string, s setting) (changed bool, err error) {
	var info struct {
		Config map[string]any `json:"config"`
	}
	if err := request(ctx, b.nc, "STREAM.INFO."+name, nil, &info); err != nil {
		return false, err
	}
	value, differs := s.over(info.Config[s.name])
	if !differs {
		return false, nil
	}
	info.Config[s.name] = value
	return true, request(ctx, b.nc, "STREAM.UPDATE."+name, info.Config, nil)
}

// over returns the setting put over what the stream has, and whether that
// changes it. Subjects are added; replicas are never lowered.
func (s setting) over(have any) (value any, differs bool) {
	switch want := s.value.(type) {
	case []string:
		var subjects []string
		list, _ := have.([]any)
		for _, subject := range list {
			subjects = append(subjects, fmt.Sprint(subject))
		}
		if covers(subjects, strings.TrimSuffix(want[0], ".>")) {
			return nil, false
		}
		return append(subjects, want...), true
	case int64:
		number, _ := have.(json.Number)
		n, _ := number.Int64() // a missing number is 0
		if n == want || s.name == "num_replicas" && n > want {
			return nil, false
		}
		return want, true
	case bool:
		return want, have != want
	default:
		panic(fmt.Sprintf("bus: setting %s of type %T", s.name, s.value))
	}
}

// request calls the JetStream API; the error of its answer is a
// *jetstream.APIError.
func request(ctx context.Context, nc *nats.Conn, subject string, body, response any) error {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	msg, err := nc.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+subject, data)
	if err != nil {
		return err
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(msg.Data, &failed); err != nil {
		return err
	}
	if failed.Error != nil {
		return failed.Error
	}
	if response == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(msg.Data))
	d.UseNumber()
	return d.Decode(response)
}

// Holds reports whether the stream of events has the message of that id at that
// sequence, or has had one there that was deleted since.
func (b *Bus) Holds(ctx context.Context, sequence uint64, id string) (bool, error) {
	stream := b.State().stream
	if stream == nil {
		return false, ErrUnavailable
	}
	msg, err := stream.GetMsg(ctx, sequence)
	if err == nil {
		return msg.Header.Get(jetstream.MsgIDHeader) == id && b.server.failed(b.cfg.Stream) == nil, nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, err
	}
	// Deleted, not yet at the server that was asked, or never there.
	s, err := b.js.Stream(ctx, b.cfg.Stream)
	if err != nil {
		return false, err
	}
	return sequence <= s.CachedInfo().State.LastSeq, nil
}
