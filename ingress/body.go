package ingress

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

var (
	errTooLarge   = errors.New("ingress: body too large")
	errOverloaded = errors.New("ingress: overloaded")
)

// budget counts what is in flight, in requests or bytes, against a limit.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take reports whether n more fit; what was taken is given back by give.
func (b *budget) take(n int64) bool {
	if b.used.Add(n) > b.limit {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// firstRead is what a body gets before its first byte has come. Memory is
// taken as bytes arrive, not as a Content-Length promises.
const firstRead = 4 << 10

// readBody reads the whole body, which must end before the deadline. It reads up to
// one byte more than the limit, to notice a body that is too large. It returns how
// much of the budget the body holds, with an error too. The errors are errTooLarge
// and errOverloaded; the latter also for a body that breaks off or is too slow, since
// all that the sender can do is to send it again.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, deadline time.Time, bytes *budget) (body []byte, held int64, err error) {
	if r.ContentLength > limit {
		return nil, 0, errTooLarge
	}
	// With a writer that knows no deadlines, as in tests, there is none. After an
	// error the deadline stays, since the server still waits for the rest of the body.
	control := http.NewResponseController(w)
	if control.SetReadDeadline(deadline) == nil {
		defer func() {
			if err == nil {
				control.SetReadDeadline(time.Time{})
			}
		}()
	}
	grow := func(to int64) bool {
		if !bytes.take(to) { // the old and the new buffer exist while one is copied into the other
			return false
		}
		body = append(make([]byte, 0, to), body...)
		bytes.give(held)
		held = to
		return true
	}
	most := limit + 1
	if r.ContentLength >= 0 {
		most = r.ContentLength + 1 // the last byte is for the end of the body
	}
	if !grow(min(firstRead, most)) {
		return nil, held, errOverloaded
	}
	for {
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return nil, held, errTooLarge
		case err == io.EOF:
			return body, held, nil
		case err != nil:
			return nil, held, fmt.Errorf("%w: %s", errOverloaded, unread(err))
		case len(body) == cap(body):
			if !grow(min(2*held, most)) {
				return nil, held, errOverloaded
			}
		}
	}
}

// unread says why a body could not be read, without the error's text, which may
// quote what an unverified sender wrote.
func unread(err error) string {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "the body did not come in time"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "the body broke off"
	}
	return "the body could not be read"
}
