package normalize

import (
	"encoding/json"

	"github.com/hookbus/bridge/internal/rawjson"
)

// parseObject returns ErrNotJSON for anything but one JSON object.
func parseObject(body []byte) (rawjson.Object, error) {
	if json.Valid(body) {
		if o, ok := rawjson.Members(body); ok {
			return o, nil
		}
	}
	return nil, ErrNotJSON
}
