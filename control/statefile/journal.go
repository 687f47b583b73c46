package statefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Journal is a file of what changed in the value of a File since that was written: for
// values too large to be written anew at each change. Records are added at its end, and
// each has its checksum (CRC-32C, in hexadecimal digits); what they mean is the caller's.
//
//	5c1a0b77 {"kind":"snapshot-journal","version":1,"of":"9f86..."}
//	1d09e4f2 [{"kind":"Service","object":{...}}]
//
// The first line names the value by its checksum. A journal of another value is as good
// as none: it was left behind by a value that was replaced.
type Journal struct {
	Path    string
	Kind    string
	Version int
}

type journalHead struct {
	Kind    string `json:"kind"`
	Version int    `json:"version"`
	Of      string `json:"of"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendLine(b, record []byte) []byte {
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(record, castagnoli))
	return append(append(b, record...), '\n')
}

// recordOf is what a line holds, without its end; false if it does not check.
func recordOf(line []byte) ([]byte, bool) {
	sum, record, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return nil, false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	return record, err == nil && crc32.Checksum(record, castagnoli) == uint32(want)
}

// Begin makes the journal an empty one of the value whose checksum File.WriteFrom
// returned.
func (j Journal) Begin(of string) error {
	head, err := json.Marshal(journalHead{j.Kind, j.Version, of})
	if err != nil {
		return fmt.Errorf("statefile: encode %s: %w", j.Kind, err)
	}
	err = Replace(j.Path, 0o600, func(out *os.File) error {
		_, err := out.Write(appendLine(nil, head))
		return err
	})
	if err != nil {
		return fmt.Errorf("statefile: write %s: %w", j.Path, err)
	}
	return nil
}

// Append adds a record, JSON without line ends, and returns how many bytes it takes. It is
// safe on the disk then. After an error the journal may end in the middle of it: Begin
// comes before the next Append.
func (j Journal) Append(record []byte) (written int, err error) {
	line := appendLine(make([]byte, 0, len("00000000 \n")+len(record)), record)
	out, err := os.OpenFile(j.Path, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = out.Write(line)
		if err == nil {
			err = unix.Fdatasync(int(out.Fd()))
		}
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return 0, fmt.Errorf("statefile: append to %s: %w", j.Path, err)
	}
	return len(line), nil
}

// Read returns the records that were added to the value whose checksum is given, in
// their order; none if the journal is of another value or there is none. One at its end
// that the machine stopped in the middle of is left out. A *DamagedError: another did not
// check, and now there is no journal.
func (j Journal) Read(of string) ([][]byte, error) {
	text, err := os.ReadFile(j.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("statefile: %w", err)
	}
	records, err := j.decode(text, of)
	if err != nil {
		return nil, &DamagedError{Path: j.Path, Kept: setAside(j.Path), Cause: err}
	}
	return records, nil
}

func (j Journal) decode(text []byte, of string) ([][]byte, error) {
	var records [][]byte
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		// What never reached the disk is missing, or reads as zeros.
		if len(rest) == 0 && (!whole || bytes.IndexByte(line, 0) >= 0) {
			break
		}
		record, ok := recordOf(line)
		if !ok {
			return nil, fmt.Errorf("line %d does not match its checksum", len(records)+1)
		}
		records = append(records, record)
		text = rest
	}
	if len(records) == 0 {
		return nil, errors.New("it has no first line")
	}
	var head journalHead
	if err := json.Unmarshal(records[0], &head); err != nil {
		return nil, err
	}
	switch {
	case head.Kind != j.Kind:
		return nil, fmt.Errorf("it holds %q, want %q", head.Kind, j.Kind)
	case head.Of != of:
		return nil, nil
	case head.Version != j.Version:
		return nil, fmt.Errorf("it has version %d, want %d", head.Version, j.Version)
	}
	return records[1:], nil
}
