// Command testsum reads `go test -json` and says what people need of it: a line
// for each package, the whole output of what failed, and, so that nothing is
// skipped in silence, every test that was skipped with its reason.
//
// It exits with 1 if anything failed, did not build, or ran no test at all.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// progress begins what a test that takes minutes says of how far it is. It is printed at
// once.
const progress = "progress: "

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // instead of Package for build output
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// summary gathers events.
type summary struct {
	w                       io.Writer
	output                  map[string]*strings.Builder // by package, test and build
	passed, failed, skipped int
	skips                   []string
	packages                int
	failedPackages          []string
}

func main() {
	s := &summary{w: os.Stdout, output: map[string]*strings.Builder{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
	if !s.finish() {
		os.Exit(1)
	}
}

func (s *summary) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Fprintln(s.w, lines.Text()) // not JSON: go's own word, such as a bad flag
			continue
		}
		s.add(e)
	}
	return lines.Err()
}

func (e *event) key() string {
	if e.Package == "" {
		return e.ImportPath
	}
	return e.Package + " " + e.Test
}

func (s *summary) add(e event) {
	key := e.key()
	switch e.Action {
	case "output", "build-output":
		b := s.output[key]
		if b == nil {
			b = &strings.Builder{}
			s.output[key] = b
		}
		b.WriteString(e.Output)
		if i := strings.Index(e.Output, progress); i >= 0 {
			fmt.Fprint(s.w, e.Output[i+len(progress):])
		}
		return
	case "build-fail":
		fmt.Fprintf(s.w, "FAIL  %s does not build\n%s", e.ImportPath, s.said(key))
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test != "" {
		s.test(e)
	} else if e.Package != "" {
		s.pkg(e)
	}
	if e.Action != "fail" || e.Test == "" {
		delete(s.output, key)
	}
}

func (s *summary) test(e event) {
	switch e.Action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		s.skips = append(s.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(s.said(e.key()))))
	case "fail":
		s.failed++
		fmt.Fprintf(s.w, "FAIL  %s %s (%.1fs)\n%s", e.Package, e.Test, e.Elapsed, s.said(e.key()))
	}
}

func (s *summary) pkg(e event) {
	s.packages++
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.w, "ok    %s (%.1fs)\n", e.Package, e.Elapsed)
	case "fail":
		s.failedPackages = append(s.failedPackages, e.Package)
		fmt.Fprintf(s.w, "FAIL  %s (%.1fs)\n%s", e.Package, e.Elapsed, s.said(e.key()))
		// A test that never ended, by panic or timeout, has no verdict of its own.
		for _, key := range s.unfinished(e.Package) {
			fmt.Fprintf(s.w, "FAIL  %s did not end\n%s", key, s.said(key))
		}
	}
}

// unfinished are the tests of a package that have output and no verdict.
func (s *summary) unfinished(pkg string) []string {
	var keys []string
	for key, b := range s.output {
		test, ok := strings.CutPrefix(key, pkg+" ")
		if ok && test != "" && !strings.Contains(b.String(), "--- FAIL") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (s *summary) said(key string) string {
	if b := s.output[key]; b != nil {
		return b.String()
	}
	return ""
}

// reason is what a skipped test said, without go test's own lines.
func reason(said string) string {
	var words []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			words = append(words, line)
		}
	}
	if len(words) == 0 {
		return "no reason given"
	}
	return strings.Join(words, " ")
}

// finish prints the sum and reports whether all is well.
func (s *summary) finish() bool {
	if len(s.skips) > 0 {
		fmt.Fprintf(s.w, "\nskipped:\n  %s\n", strings.Join(s.skips, "\n  "))
	}
	fmt.Fprintf(s.w, "\n%d tests passed, %d failed, %d skipped in %d packages\n", s.passed, s.failed, s.skipped, s.packages)
	if len(s.failedPackages) > 0 {
		fmt.Fprintf(s.w, "failed: %s\n", strings.Join(s.failedPackages, " "))
	}
	return s.failed == 0 && len(s.failedPackages) == 0 && s.passed > 0
}
