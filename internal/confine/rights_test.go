package confine

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFilesThatAreReplacedCanStillBeRead(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "links", "ca.pem"), filepath.Join(dir, "of today", "ca.pem")
	for _, p := range []string{link, target} {
		if err := os.Mkdir(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, path string
		want       []string
	}{
		{"in a directory of its own", "/etc/vswitch/ca.pem", []string{"/etc/vswitch"}},
		{"among all programs' files", "/etc/ca.pem", []string{"/etc/ca.pem"}},
		{"at the top", "/ca.pem", []string{"/ca.pem"}},
		{"a link", link, []string{filepath.Dir(link), filepath.Dir(target)}},
		{"none", "", nil},
	} {
		var got []string
		for _, f := range Replaceable(tt.path) {
			got = append(got, f.Path)
			if f.Access != Read {
				t.Errorf("%s: access %v, want Read", tt.name, f.Access)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
