package normalize_test

import (
	"fmt"
	"time"

	"github.com/hookbus/bridge/normalize"
)

func Example() {
	provider, _ := normalize.ByName("osapher")
	body := []byte(`{"event":"verification.high_risk","timestamp":"2026-04-26T10:23:01.000Z","data":{"abn":"22222222222","fractureRisk":"high"}}`)

	event, err := provider.Event(body, time.Now())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(event.CloudEvent.Type())
	fmt.Println(event.Subject("webhooks"))
	fmt.Println(event.CloudEvent.ID())
	// Output:
	// com.osapher.verification.high_risk
	// webhooks.osapher.verification.high_risk
	// c722b12878b8a3f7024d7052b7d184337fe5814f8510ef3b61207bad5982b9b5
}
