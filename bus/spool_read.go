package bus

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// stored is a message of the spool.
type stored struct {
	sequence uint64
	event    bool // as it was counted
	Spooled
}

// parking is for an entity of which a message could not be handed over: that one is tried
// again, and what comes later about the entity waits.
type parking struct {
	until    time.Time
	sequence uint64
	next     uint64 // of the entity, if more was seen
}

// before says that the entity has another message.
func (p parking) before(sequence uint64) parking {
	if sequence > p.sequence && (p.next == 0 || sequence < p.next) {
		p.next = sequence
	}
	return p
}

// batch is what is handed over next.
type batch struct {
	messages []stored
	again    []stored          // of parked entities: the first of each
	held     map[string]uint64 // entities of which more was seen: its sequence
	end      uint64            // sequence up to which all was looked at
	more     bool              // there may be more behind it
}

// oldest reads the messages to hand over next. Of the reports about one thing only one
// is among them: after a crash, what had been stored is handed over again, and a report
// is recognised only until the next is stored.
func (s *Spool) oldest(ctx context.Context, limit int) (b batch, err error) {
	b = batch{held: make(map[string]uint64), end: s.begin}
	reports, size := make(map[string]bool), 0
	for _, key := range s.expired() {
		if len(b.again) == min(limit, spoolAgain) || size > spoolBatchBytes/2 {
			break
		}
		sequence := s.parked[key].sequence
		msg, err := s.read(ctx, sequence, anySubject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && msg.Sequence != sequence: // it is gone
			delete(s.parked, key)
			b.end = min(b.end, sequence)
			continue
		case err != nil:
			return b, err
		}
		m := decodeStored(msg)
		reports[m.stateKey()] = true
		b.again, size = append(b.again, m), size+len(msg.Data)
	}
	subject := anySubject
	if p, parked := s.parked[rejected]; parked {
		subject = eventSubject
		s.parked[rejected] = p.before(p.sequence + 1) // it is not looked whether there is more
	}
	for range spoolScan {
		if len(b.messages) == limit || size > spoolBatchBytes {
			break
		}
		msg, err := s.read(ctx, b.end+1, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		b.end = msg.Sequence
		m := decodeStored(msg)
		entity, key := m.entity(), m.stateKey()
		p, parked := s.parked[entity]
		_, held := b.held[entity]
		switch {
		case parked:
			s.parked[entity] = p.before(m.sequence)
		case held:
		case key != "" && reports[key]:
			b.held[entity] = m.sequence
		default:
			reports[key] = true
			b.messages, size = append(b.messages, m), size+len(msg.Data)
		}
	}
	b.more = true
	return b, nil
}

func decodeStored(msg *jetstream.RawStreamMsg) stored {
	return stored{msg.Sequence, msg.Subject == eventSubject, decodeSpooled(msg)}
}

// expired returns the parked entities whose time has come, the oldest first.
func (s *Spool) expired() (entities []string) {
	for entity, p := range s.parked {
		if time.Now().After(p.until) {
			entities = append(entities, entity)
		}
	}
	slices.SortFunc(entities, func(a, b string) int { return cmp.Compare(s.parked[a].sequence, s.parked[b].sequence) })
	return entities
}

// read returns the first message from a sequence on.
func (s *Spool) read(ctx context.Context, sequence uint64, subject string) (*jetstream.RawStreamMsg, error) {
	bounded, cancel := withTimeout(ctx, spoolTimeout)
	defer cancel()
	msg, err := s.store.stream.GetMsg(bounded, sequence, jetstream.WithGetMsgSubject(subject))
	if err != nil && bounded.Err() != nil {
		err = context.Cause(bounded)
	}
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) && ctx.Err() == nil {
		return nil, s.fail("reading", err)
	}
	return msg, err
}
