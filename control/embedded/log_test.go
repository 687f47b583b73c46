package embedded

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestALogDoesNotGrowForEver(t *testing.T) {
	dir := t.TempDir()
	path := logPath(dir)
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const most, lines = 1000, 500
	l := &boundedLog{to: f, path: path, most: most}
	for n := range lines {
		if _, err := fmt.Fprintf(l, "line %d of a store\n", n); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := lastLine(path), fmt.Sprintf("line %d of a store", lines-1); got != want {
		t.Errorf("it ends %q, want %q", got, want)
	}
	// The runtime's last words come without the log's knowing.
	if _, err := f.WriteString("panic: out of luck\n"); err != nil {
		t.Fatal(err)
	}
	if got := lastLine(path); got != "panic: out of luck" {
		t.Errorf("it ends %q, want the panic", got)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v; want the log and the one before", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil || len(text) > most+100 || !bytes.HasPrefix(text, []byte("line ")) {
			t.Errorf("%s: %d bytes, %v; want at most %d of whole lines", name, len(text), err, most)
		}
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v; want it for its user alone", name, info.Mode(), err)
		}
	}
}

// A store that is run by hand writes to a terminal or a pipe.
func TestWhatIsNotTheLogIsNotSetAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(logPath(dir), []byte("of another store"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	l := &boundedLog{to: &out, path: logPath(dir), most: 1}
	for range 3 {
		fmt.Fprintln(l, "hello")
	}
	if got := lastLine(logPath(dir)); got != "of another store" || out.String() != "hello\nhello\nhello\n" {
		t.Errorf("the log holds %q, and it wrote %q", got, out.String())
	}
}
