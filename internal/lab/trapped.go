package lab

import (
	"os"
	"path/filepath"
	"strings"
)

// trapped is what the Go runtime says last of a process that ends at a system call
// that its filter does not let it make.
const trapped = "SIGSYS: bad system call"

// Trapped is what daemons and stores said that ended at a system call they had given
// up: their stack traces from there on. It is for labs whose daemons run in mode trap.
func (l *Lab) Trapped() string {
	var said []string
	for _, n := range l.Nodes() {
		logs, _ := filepath.Glob(filepath.Join(n.StateDir(), "store", "store.log*"))
		for _, name := range logs {
			text, _ := os.ReadFile(name)
			said = append(said, string(text))
		}
	}
	l.mu.Lock()
	processes := append([]*Process(nil), l.processes...)
	l.mu.Unlock()
	for _, p := range processes {
		if p.LogPath != "" {
			said = append(said, p.Log())
		}
	}
	var out strings.Builder
	for _, text := range said {
		if i := strings.Index(text, trapped); i >= 0 {
			out.WriteString(text[i:min(len(text), i+maxTraceBytes)] + "\n")
		}
	}
	return out.String()
}

// maxTraceBytes holds the stack of the call; those of other goroutines come behind.
const maxTraceBytes = 3000
