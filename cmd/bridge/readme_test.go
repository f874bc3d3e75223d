package main

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hookbus/bridge/normalize"
)

// What the README says is what the program does.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := string(text)
	want := func(s string) {
		t.Helper()
		if !strings.Contains(readme, s) {
			t.Errorf("not in the README:\n%s", s)
		}
	}

	fields := reflect.TypeFor[config]()
	for i := range fields.NumField() {
		tag := fields.Field(i).Tag
		if tag.Get("env") == "" {
			continue
		}
		value := ""
		if d := tag.Get("envDefault"); d != "" {
			value = " `" + d + "`"
		}
		want(fmt.Sprintf("| `%s%s` |%s | %s |\n", envPrefix, tag.Get("env"), value, tag.Get("help")))
	}

	for _, p := range normalize.Providers() {
		want("`" + strings.ToUpper(p.Name) + "`")
		shown := false
		for _, sample := range p.Samples() {
			shown = shown || strings.Contains(readme, "`"+p.TypePrefix+sample.Kind+"`") &&
				strings.Contains(readme, "`"+normalize.Subject("webhooks", p.Name, sample.Kind)+"`")
		}
		if !shown {
			t.Errorf("no type of %s with its subject is in the README", p.Name)
		}
	}

	example, err := os.ReadFile("../../examples/consume_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, snippet, _ := strings.Cut(string(example), "\nfunc consume(")
	snippet, _, _ = strings.Cut(snippet, "\nfunc Example")
	want("```go\nfunc consume(" + strings.TrimSpace(snippet) + "\n```")

	ci, err := os.ReadFile("../../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"go run ./cmd/bridge dev", "go test -race -shuffle=on ./..."} {
		want(command)
	}
	if lines := strings.Split(strings.TrimSpace(string(ci)), "\n"); lines[len(lines)-1] != "go test -race -shuffle=on ./..." {
		t.Errorf("CI ends with %q", lines[len(lines)-1])
	}
}
