package userns

import (
	"fmt"
	"strings"
	"testing"
)

func TestGrantedRangesFollowEachOther(t *testing.T) {
	file := "# a comment\nother:1:2\nuser:100000:65536\n\n1000:300000:10\nuser:400000:0\n"
	got, err := parseGranted(strings.NewReader(file), []string{"1000", "user"})
	if want := "[{1 100000 65536} {65537 300000 10}]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v; want %s", got, err, want)
	}
	if got, err := parseGranted(strings.NewReader(file), []string{"nobody"}); err != nil || got != nil {
		t.Errorf("got %v, %v for who is granted nothing", got, err)
	}
	for _, bad := range []string{"user:1", "user:x:1", "user:1:-1", "user::"} {
		if got, err := parseGranted(strings.NewReader(bad), []string{"user"}); err == nil {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
	if got, err := parseGranted(strings.NewReader("user:0:4294967295"), []string{"user"}); err != nil || got != nil {
		t.Errorf("got %v, %v: more ids than there are", got, err)
	}
}

func TestRootMapsWhatIsMappedHere(t *testing.T) {
	for _, tt := range []struct{ name, file, want string }{
		{"all of the machine", "         0          0 4294967295\n", "[{0 0 4294967295}]"},
		{"a container's", "0 1000 1\n1 100000 65536\n", "[{0 0 1} {1 1 65536}]"},
	} {
		if got, err := parseMapped(tt.file); err != nil || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, %v; want %s", tt.name, got, err, tt.want)
		}
	}
	if got, err := parseMapped("0 1000\n"); err == nil {
		t.Errorf("half a line is read as %v", got)
	}
}

func TestMapsAsTheKernelReadsThem(t *testing.T) {
	if got, want := lines([]Range{{0, 1000, 1}, {1, 100000, 65536}}), "0 1000 1\n1 100000 65536\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
