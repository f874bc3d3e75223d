package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"
)

// stored is a message of the spool.
type stored struct {
	sequence uint64
	size     int
	event    bool // as it was counted
	Spooled
}

func decodeStored(msg *jetstream.RawStreamMsg) stored {
	return stored{msg.Sequence, len(msg.Data), msg.Subject == eventSubject, decodeSpooled(msg)}
}

// read returns the first message from a sequence on.
func (s *Spool) read(ctx context.Context, sequence uint64, subject string) (*jetstream.RawStreamMsg, error) {
	bounded, cancel := withTimeout(ctx, spoolTimeout)
	defer cancel()
	probes := s.probes.Load()
	msg, err := s.store.stream.GetMsg(bounded, sequence, jetstream.WithGetMsgSubject(subject))
	err = late(bounded, err)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && ctx.Err() == nil {
		return nil, s.fail("reading", probes, err)
	}
	return msg, err
}
