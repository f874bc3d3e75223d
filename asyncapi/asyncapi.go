// Package asyncapi describes what the bridge publishes as an AsyncAPI 3 document:
// a channel for each subject, its message with the CloudEvents headers, and the
// payload's schema. [Document] makes it from the schemas in schemas/.
package asyncapi

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/hookbus/bridge/normalize"
	"github.com/hookbus/bridge/schemas"
)

// object is a JSON object.
type object = map[string]any

// Document returns the document in JSON for events published below a subject
// prefix by a bridge of that version (AsyncAPI 3.0.0).
func Document(prefix, version string) ([]byte, error) {
	channels, operations, messages := object{}, object{}, object{}
	components := object{"headers": headers()}
	for _, p := range normalize.Providers() {
		files, err := fs.Glob(schemas.FS(), p.Name+"/*.json")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			schema, err := read(file)
			if err != nil {
				return nil, err
			}
			if definitions, ok := schema["$defs"].(object); ok {
				for name, definition := range definitions {
					components[p.Name+"."+name] = rewrite(definition, p.Name)
				}
				continue
			}
			kind := strings.TrimSuffix(path.Base(file), ".json")
			name := p.Name + "." + kind
			components[name] = rewrite(schema, p.Name)
			messages[name] = object{
				"name":        p.TypePrefix + kind,
				"title":       schema["title"],
				"contentType": "application/json",
				"headers": object{"allOf": []any{
					ref("schemas", "headers"),
					object{"properties": object{"ce-type": object{"const": p.TypePrefix + kind}, "ce-provider": object{"const": p.Name}}},
				}},
				"payload": ref("schemas", name),
			}
			channels[name] = object{
				"address":     normalize.Subject(prefix, p.Name, kind),
				"description": schema["description"],
				"messages":    object{"event": ref("messages", name)},
			}
			operations[name] = object{
				"action":  "send",
				"channel": object{"$ref": "#/channels/" + name},
				"summary": schema["title"],
			}
		}
	}
	return json.MarshalIndent(object{
		"asyncapi": "3.0.0",
		"info": object{
			"title":   "Webhooks bridge",
			"version": version,
			"description": "Webhooks of identity, fraud and custody providers as CloudEvents 1.0 on NATS JetStream, in binary mode: " +
				"attributes are headers, the payload is the provider's body byte for byte. A body too large for a message is in an object store, " +
				"and the header ce-dataref names it (nats-object:<bucket>/<name>). Further types may come: providers add them without notice.",
		},
		"defaultContentType": "application/json",
		"channels":           channels,
		"operations":         operations,
		"components":         object{"messages": messages, "schemas": components},
	}, "", "  ")
}

func ref(kind, name string) object { return object{"$ref": "#/components/" + kind + "/" + name} }

func read(file string) (object, error) {
	text, err := fs.ReadFile(schemas.FS(), file)
	if err != nil {
		return nil, err
	}
	var schema object
	if err := json.Unmarshal(text, &schema); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return schema, nil
}

// rewrite makes a JSON Schema (2020-12) a Schema Object of AsyncAPI (draft 07):
// references go to the components, and beside one there is nothing.
func rewrite(schema any, provider string) any {
	switch v := schema.(type) {
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = rewrite(item, provider)
		}
		return out
	case object:
		out := object{}
		for key, value := range v {
			switch key {
			case "$schema", "$comment", "goJSONSchema":
			case "examples", "const", "enum":
				out[key] = value // data
			default:
				out[key] = rewrite(value, provider)
			}
		}
		if to, ok := v["$ref"].(string); ok {
			_, name, _ := strings.Cut(to, "#/$defs/")
			delete(out, "$ref")
			target := ref("schemas", provider+"."+name)
			if len(out) == 0 {
				return target
			}
			all, _ := out["allOf"].([]any)
			out["allOf"] = append(all, target)
		}
		return out
	}
	return schema
}

// headers describes the headers of every event.
func headers() object {
	text := func(description string) object { return object{"type": "string", "description": description} }
	words := func(description string, words ...string) object {
		return object{"type": "string", "description": description, "enum": words}
	}
	return object{
		"type":        "object",
		"description": "CloudEvents 1.0 attributes, percent-encoded where they hold what is not printable ASCII.",
		"required":    []string{"Nats-Msg-Id", "ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-datacontenttype", "ce-provider", "ce-recordedtime", "ce-dedupbasis"},
		"properties": object{
			"Nats-Msg-Id":        text("The same as ce-id."),
			"content-type":       text("The same as ce-datacontenttype."),
			"ce-specversion":     object{"const": "1.0"},
			"ce-id":              text("Names the occurrence: the same in every redelivery and replay."),
			"ce-source":          text("The provider."),
			"ce-type":            text("What happened."),
			"ce-subject":         text("The entity that it is about."),
			"ce-time":            text("RFC 3339: when it happened; when it was received, if the provider does not say."),
			"ce-datacontenttype": object{"const": "application/json"},
			"ce-dataschema":      text("URL of the payload's JSON Schema."),
			"ce-dataref":         text("Where the body is, if it is too large for a message: nats-object:<bucket>/<name>."),
			"ce-provider":        text("The provider's name."),
			"ce-recordedtime":    text("RFC 3339: when the bridge received it."),
			"ce-dedupbasis":      words("How redeliveries are recognised.", "id", "content", "state"),
			"ce-outcome":         words("What came of it, without regard to the provider.", "approved", "rejected", "review", "pending", "completed", "failed"),
			"ce-risk":            text("low, medium, high or critical."),
			"ce-externalid":      text("The caller's own reference."),
			"ce-requestid":       text("Waldo's request."),
			"ce-providereventid": text("The provider's own id of the event."),
			"ce-attempt":         text("The provider's count of attempts, from 1."),
			"ce-traceparent":     text("W3C Trace Context of the span in which the bridge has published it, if the bridge traces."),
			"ce-schemaerror":     text("JSON pointer to the first part of the payload that its schema does not allow."),
		},
	}
}
