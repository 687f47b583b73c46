package bench

import (
	"bytes"
	"fmt"
	"strings"
)

// The part of a document between these two lines is a run's, and replaced whole.
const (
	reportBegin = "<!-- a run: written by vswitch-bench report -->"
	reportEnd   = "<!-- end of the run -->"
)

// Report puts the run's table and plots into a Markdown document, between its
// two marks. plotDir is where the plots are, as seen from the document.
func (r *Result) Report(document []byte, plots []Plot, plotDir string) ([]byte, error) {
	before, rest, ok := bytes.Cut(document, []byte(reportBegin+"\n"))
	_, after, end := bytes.Cut(rest, []byte(reportEnd+"\n"))
	if !ok || !end {
		return nil, fmt.Errorf("bench: the document has no place for a run: a line %q and, below it, a line %q", reportBegin, reportEnd)
	}
	var b bytes.Buffer
	b.Write(before)
	fmt.Fprintf(&b, "%s\n\n", reportBegin)
	fmt.Fprintf(&b, "Run of %s, %d MB of memory, load average before it %s.\n\n", r.Machine.Started.Format("2006-01-02 15:04 MST"),
		r.Machine.MemoryBytes>>20, r.Machine.LoadAverage)
	if err := r.WriteTable(&b); err != nil {
		return nil, err
	}
	for _, p := range plots {
		fmt.Fprintf(&b, "\n![%s](%s/%s.svg)\n", p.Title, strings.TrimSuffix(plotDir, "/"), p.Name)
	}
	fmt.Fprintf(&b, "\n%s\n", reportEnd)
	b.Write(after)
	return b.Bytes(), nil
}
