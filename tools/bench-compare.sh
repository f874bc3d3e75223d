#!/bin/sh
# bench-compare.sh COUNT BENCHMARKS PACKAGES...: the benchmarks of this tree and of the last
# commit (of the one before, if nothing has changed since), in turns, and what differs.
set -eu
count=$1 pattern=$2
shift 2
base=HEAD
if git diff --quiet HEAD --; then base=HEAD~1; fi
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/tree" 2>/dev/null; rm -rf "$dir"' EXIT INT TERM
git worktree add --quiet --detach "$dir/tree" "$base"
for _ in $(seq "$count"); do
	(cd "$dir/tree" && go test -run '^$' -bench "$pattern" -benchmem "$@") >>"$dir/before" || true # it may lack some
	go test -run '^$' -bench "$pattern" -benchmem "$@" >>"$dir/now"
done
echo "before: $(git log -1 --format='%h %s' "$base")"
go tool -modfile=tools/go.mod benchstat before="$dir/before" now="$dir/now"
