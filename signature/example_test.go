package signature_test

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hookbus/bridge/signature"
)

var dataspike = signature.Scheme{
	Headers: []string{"X-Webhook-Signature"},
	Key:     signature.HexAfterWhsec,
	Time:    signature.HeaderTime,
}

func ExampleVerifier_Verify() {
	// Two secrets: the old one goes when slot 0 no longer matches.
	verifier, err := dataspike.NewVerifier([]string{"whsec_0102", "whsec_a1b2"}, 5*time.Minute)
	if err != nil {
		fmt.Println(err)
		return
	}
	header := http.Header{}
	header.Set("X-Webhook-Signature",
		"t=1720018333,v1=c903cfba6231def92436b0d34689958bcb2480fea93cdcd39b89d6ece4b58f55")
	body := []byte(`{"event_type":"DOCVER"}`)

	fmt.Println(verifier.Verify(header, body, time.Unix(1720018400, 0)))

	_, err = verifier.Verify(header, body, time.Unix(1720099999, 0))
	fmt.Println(errors.Is(err, signature.ErrTimestamp))
	// Output:
	// 1 <nil>
	// true
}

func ExampleScheme_Sign() {
	body := []byte(`{"event_type":"DOCVER"}`)
	header, value, err := dataspike.Sign("whsec_a1b2", body, time.Unix(1720018333, 0))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s: %s\n", header, value)
	// Output: X-Webhook-Signature: t=1720018333,v1=c903cfba6231def92436b0d34689958bcb2480fea93cdcd39b89d6ece4b58f55
}
