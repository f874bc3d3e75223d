package normalize

import "strings"

const (
	maxSubject = 256 // bytes, prefix included
	maxTokens  = 14  // after the prefix
)

// Subject returns the NATS subject prefix.provider.kind. Whatever kind holds,
// the subject stays below prefix.provider: its tokens are made of a-z, 0-9, _
// and -, none is empty, there are at most 14 of them after the prefix and 256
// bytes in all. Any other character becomes _, as does an empty token; what is
// beyond the limits is cut off (the CloudEvents type keeps it).
func Subject(prefix, provider, kind string) string {
	var b strings.Builder
	b.Grow(len(prefix) + len(provider) + len(kind) + 2)
	b.WriteString(prefix)
	b.WriteByte('.')
	b.WriteString(provider)
	for i, token := range strings.SplitN(kind, ".", maxTokens) {
		if i == maxTokens-1 || b.Len()+1 >= maxSubject {
			break
		}
		b.WriteByte('.')
		if token == "" {
			b.WriteByte('_')
		}
		for _, r := range token {
			if b.Len() == maxSubject {
				break
			}
			switch {
			case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '_', r == '-':
				b.WriteRune(r)
			default:
				b.WriteByte('_')
			}
		}
	}
	return b.String()
}
