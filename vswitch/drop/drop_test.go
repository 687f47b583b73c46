package drop

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// constants reads the names of the reasons from the source, None first.
func constants(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "drop.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var idents []string
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST || len(group.Specs) < 2 {
			continue
		}
		for _, spec := range group.Specs {
			for _, ident := range spec.(*ast.ValueSpec).Names {
				idents = append(idents, ident.Name)
			}
		}
	}
	if len(idents) != Count+1 || idents[0] != "None" || idents[Count] != "count" {
		t.Fatalf("constants in the source: %q; want %d from None to count", idents, Count+1)
	}
	return idents[:Count]
}

// kebab turns SpoofedMAC into spoofed-mac and NoVNIHere into no-vni-here.
func kebab(s string) string {
	var b strings.Builder
	r := []rune(s)
	for i, c := range r {
		if i > 0 && unicode.IsUpper(c) &&
			(unicode.IsLower(r[i-1]) || i+1 < len(r) && unicode.IsLower(r[i+1])) {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

func TestEveryReasonIsNamedAfterItsConstant(t *testing.T) {
	seen := make(map[string]bool)
	for i, ident := range constants(t) {
		name := Reason(i).String()
		if want := kebab(ident); name != want {
			t.Errorf("%s has the name %q, want %q", ident, name, want)
		}
		if seen[name] {
			t.Errorf("two reasons have the name %q", name)
		}
		seen[name] = true
	}
	if got := Reason(255).String(); got != "reason-255" {
		t.Errorf("a reason that is none: %q", got)
	}
}

// row is a table line of docs/counters.md: `name`, meaning, what to do.
var row = regexp.MustCompile("(?m)^\\| `([^`]*)` \\| (.*) \\| (.*) \\|$")

func TestEveryReasonHasItsLineInTheManual(t *testing.T) {
	text, err := os.ReadFile("../../docs/counters.md")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		have = append(have, m[1])
		for _, cell := range m[2:] {
			if !strings.HasSuffix(strings.TrimSpace(cell), ".") {
				t.Errorf("%s: %q is no sentence", m[1], cell)
			}
		}
	}
	var want []string
	for r := None + 1; r < count; r++ {
		want = append(want, r.String())
	}
	for _, name := range want {
		if !slices.Contains(have, name) {
			t.Errorf("docs/counters.md has no line for %q", name)
		}
	}
	for _, name := range have {
		if !slices.Contains(want, name) {
			t.Errorf("docs/counters.md has a line for %q, which is no reason", name)
		}
	}
	if !t.Failed() && !slices.Equal(have, want) {
		t.Errorf("docs/counters.md does not follow the order of the constants:\nhave %q\nwant %q", have, want)
	}
}
