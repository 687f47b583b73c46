package embedded

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The store's log lies in its directory, with the one before beside it. A store on a
// slow disk writes a warning for every request, for as long as it runs.

// logBytes is how much log is kept, and as much of the one before.
const logBytes = 8 << 20

func logPath(dir string) string { return filepath.Join(dir, "store.log") }

// openLog opens a log to be written on, or begins another if that is full.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logBytes {
		if err := setLogAside(path); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

func setLogAside(path string) error { return os.Rename(path, path+".1") }

// boundedLog writes to a log that was opened by openLog, and begins another when it is
// full, under the same descriptor: what the runtime writes as the process ends goes
// there too. Anything else it only writes to.
type boundedLog struct {
	to   io.Writer
	path string
	most int64 // bytes

	mu sync.Mutex
}

// Write implements io.Writer. That another log can't be begun is no reason to lose a line.
func (l *boundedLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f, ok := l.to.(*os.File); ok && l.full(f) {
		_ = l.begin(f)
	}
	return l.to.Write(line)
}

// full reports whether f is the log at path and long enough.
func (l *boundedLog) full(f *os.File) bool {
	open, err := f.Stat()
	if err != nil || open.Size() < l.most {
		return false
	}
	there, err := os.Stat(l.path)
	return err == nil && os.SameFile(open, there)
}

// begin has f be another file in the place of this one.
func (l *boundedLog) begin(f *os.File) error {
	if err := setLogAside(l.path); err != nil {
		return err
	}
	next, err := openLog(l.path)
	if err != nil {
		return err
	}
	// Not closed on exec, as descriptors 1 and 2 are not.
	return errors.Join(unix.Dup3(int(next.Fd()), int(f.Fd()), 0), next.Close())
}

// lastLine is the end of a log, for a message.
func lastLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tailBytes = 2048
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd)
	}
	buf := make([]byte, tailBytes)
	n, _ := f.Read(buf)
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	return lines[len(lines)-1]
}
