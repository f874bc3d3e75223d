#!/bin/sh
# Runs every fuzz target of the module, one after the other: fuzz.sh [FUZZTIME]
# Goes on after a failure and fails at the end.
set -eu
fuzztime=${1:-10s}

files=$(go list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}' ./...)
targets=$(echo "$files" | while read -r package file; do
	test -z "$file" || sed -n "s|^func \(Fuzz[A-Za-z0-9_]*\)(.*|$package \1|p" "$file"
done)
if test -z "$targets"; then
	echo "no fuzz targets found" >&2
	exit 1
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# run PACKAGE TARGET
run() {
	echo "==> fuzz $1 $2 for $fuzztime"
	{
		status=0
		go test -run='^$' -fuzz="^$2\$" -fuzztime="$fuzztime" -fuzzminimizetime=1000x "$1" </dev/null 2>&1 || status=$?
		echo "$status" >"$tmp/status"
	} | tee "$tmp/log"
	test "$(cat "$tmp/status")" = 0
}

# Until Go 1.27 a run may fail with nothing but this message when its time is
# up (go.dev/issue/75804). It says nothing about the target.
timed_out() {
	grep -q '^ *context deadline exceeded$' "$tmp/log" && ! grep -q 'Failing input' "$tmp/log"
}

echo "$targets" >"$tmp/targets"
failed=
while read -r package target; do
	if run "$package" "$target"; then continue; fi
	if timed_out; then
		echo "==> Go's fuzzer missed its deadline; once more"
		if run "$package" "$target"; then continue; fi
	fi
	failed="$failed
$package $target"
done <"$tmp/targets"

if test -n "$failed"; then
	echo "fuzz targets that failed:$failed" >&2
	exit 1
fi
