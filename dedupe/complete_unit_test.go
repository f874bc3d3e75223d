package dedupe

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Whoever asks gets the answer to a question that was asked after that, one question at
// a time for all who wait.
func TestAskTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var questions together[int]
		asked, answers := 0, make(chan struct{})
		question := func(context.Context) (int, error) {
			asked++
			n := asked
			<-answers
			return n, nil
		}
		got := make(chan int, 64)
		ask := func() {
			n, err := questions.ask(t.Context(), question)
			if err != nil {
				t.Error(err)
			}
			got <- n
		}
		go ask()
		synctest.Wait()
		for range 50 {
			go ask()
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := questions.ask(gone, question); !errors.Is(err, context.Canceled) {
			t.Errorf("who does not wait gets %v", err)
		}
		synctest.Wait()
		for _, want := range []struct{ answer, count int }{{1, 1}, {2, 50}} {
			answers <- struct{}{}
			for range want.count {
				if n := <-got; n != want.answer {
					t.Errorf("answer %d, want %d", n, want.answer)
				}
			}
		}
		synctest.Wait()
		if asked != 2 {
			t.Errorf("%d questions for 52 who asked", asked)
		}
	})
}
