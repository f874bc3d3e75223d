package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/hookbus/bridge/normalize"
)

// reference is what the bridge is compared with: the least Go code that reads,
// verifies and answers and, if there is a NATS server, publishes with a message
// id and waits for the acknowledgement. If it recognises, too, it reads the id
// from a bucket before, and writes it after that.
func reference(addr, url string, recognises bool) error {
	p, _ := normalize.ByName(named.provider)
	verifier, err := p.Scheme.NewVerifier([]string{os.Getenv("SECRET")}, time.Hour)
	if err != nil {
		return err
	}
	var js jetstream.JetStream
	var bucket jetstream.KeyValue
	if url != "" {
		nc, err := nats.Connect(url)
		if err != nil {
			return err
		}
		if js, err = jetstream.New(nc); err != nil {
			return err
		}
		if recognises {
			if bucket, err = js.KeyValue(context.Background(), referenceStream); err != nil {
				return err
			}
		}
	}
	answer := []byte(`{"result":"accepted","id":"5832f0ea4a798419422781005c697a84a7b1c2d3e4f5061728394a5b6c7d8e9f"}`)
	server := &http.Server{Addr: addr, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "", http.StatusBadRequest)
			return
		}
		if _, err := verifier.Verify(r.Header, body, time.Now()); err != nil {
			http.Error(w, "", http.StatusUnauthorized)
			return
		}
		if js != nil {
			ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
			defer cancel()
			if err := store(ctx, js, bucket, body); err != nil {
				fmt.Fprintln(os.Stderr, err)
				http.Error(w, "", http.StatusServiceUnavailable)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(answer)
	})}
	return server.ListenAndServe()
}

func store(ctx context.Context, js jetstream.JetStream, bucket jetstream.KeyValue, body []byte) error {
	sum := sha256.Sum256(body)
	id := hex.EncodeToString(sum[:])
	if bucket != nil {
		if _, err := bucket.Get(ctx, id); !errors.Is(err, jetstream.ErrKeyNotFound) {
			return err
		}
	}
	_, err := js.Publish(ctx, referenceStream+".event", body, jetstream.WithMsgID(id))
	if err == nil && bucket != nil {
		_, err = bucket.Put(ctx, id, nil)
	}
	return err
}

// referenceStream is also its subject, and its bucket.
const referenceStream = "REFERENCE"
