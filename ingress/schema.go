package ingress

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

// SchemaMode says what becomes of an event that its schema does not allow.
type SchemaMode string

const (
	SchemaOff        SchemaMode = "off"        // it is not looked at
	SchemaMark       SchemaMode = "mark"       // it is published with the extension schemaerror
	SchemaQuarantine SchemaMode = "quarantine" // its body goes to the quarantine
)

// ErrSchema: an event's schema does not allow its body.
var ErrSchema = errors.New("ingress: body does not fit its schema")

// Schemas judges events by their schemas, and names the schema in them.
type Schemas struct {
	mode       SchemaMode
	base       string
	validator  *schemas.Validator
	violations *prometheus.CounterVec
}

// NewSchemas compiles the schemas. baseURL is where consumers find /schemas; without
// one, events do not name their schema.
func NewSchemas(mode SchemaMode, baseURL string, reg prometheus.Registerer) (*Schemas, error) {
	s := &Schemas{mode: mode, base: baseURL, violations: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "bridge_schema_violations_total",
		Help: "Events whose body their schema does not allow.",
	}, []string{"provider", "type"})}
	var err error
	if mode != SchemaOff {
		s.validator, err = schemas.Compile()
		for _, t := range schemas.Types() { // so that rates start from zero
			s.violations.WithLabelValues(t.Provider, t.Kind)
		}
	}
	return s, errors.Join(err, reg.Register(s.violations))
}

// check names the schema of an event and marks what it does not allow. The error
// is [ErrSchema] if such an event is to be quarantined; it holds no value of the
// body.
func (s *Schemas) check(e *normalize.Event) error {
	if s == nil {
		return nil
	}
	if s.base != "" {
		if path, known := schemas.Path(e.Provider, e.Kind); known {
			e.CloudEvent.SetDataSchema(s.base + "/schemas/" + path)
		}
	}
	if s.mode == SchemaOff || s.validator.Fits(e.Provider, e.Kind, e.CloudEvent.Data()) {
		return nil
	}
	violation, _ := s.validator.Validate(e.Provider, e.Kind, e.CloudEvent.Data())
	if violation == nil {
		return nil
	}
	s.violations.WithLabelValues(e.Provider, e.Kind).Inc()
	if s.mode == SchemaQuarantine {
		return fmt.Errorf("%w: %v", ErrSchema, violation)
	}
	pointer := violation.Pointer
	if pointer == "" { // the whole body; an empty attribute would be none
		pointer = "#"
	}
	e.CloudEvent.SetExtension("schemaerror", pointer)
	return nil
}
