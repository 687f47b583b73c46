package statefile

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Two installers may write one file, an old pod's and a new one's.
func TestWritersOfOneFileTakeTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin")
	const writers, times, pieces, pieceBytes = 4, 20, 64, 4 << 10
	content := func(writer int) []byte { return bytes.Repeat([]byte{byte('a' + writer)}, pieceBytes) }
	if err := os.WriteFile(path, bytes.Repeat(content(0), pieces), 0o755); err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	for w := range writers {
		writing.Go(func() {
			for range times {
				err := Replace(path, 0o755, func(f *os.File) error {
					for range pieces {
						if _, err := f.Write(content(w)); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writing.Wait(); close(done) }()
	for wrote := false; !wrote; {
		select {
		case <-done:
			wrote = true // and a last look
		default:
		}
		if err := whole(path, pieces*pieceBytes); err != nil {
			t.Error(err)
			break
		}
	}
	<-done
	if left, err := filepath.Glob(path + ".*"); err != nil || left != nil {
		t.Errorf("%v is left (%v)", left, err)
	}
}

// whole says what is wrong with a file that one writer is to have written.
func whole(path string, want int) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(text) != want || len(bytes.Trim(text, string(text[:1]))) > 0 {
		return fmt.Errorf("%d bytes, want %d of one writer", len(text), want)
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode() != fs.FileMode(0o755) {
		err = fmt.Errorf("mode %v", info.Mode())
	}
	return err
}
