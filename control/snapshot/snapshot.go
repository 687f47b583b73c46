// Package snapshot keeps the last good objects of a node's control plane in a file,
// so that a daemon forwards from its start, before any source has answered (design
// decision 11).
//
// Objects are kept, not the state they led to: a newer daemon computes its own
// state from them. When to save is control.Controller's to decide, which never
// offers a list it does not believe.
package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"vswitch/control"
	"vswitch/control/statefile"
)

const version = 1

// record is one object as stored.
type record struct {
	Kind   string          `json:"kind"`
	Object json.RawMessage `json:"object"`
}

func file(path string) statefile.File {
	return statefile.File{Path: path, Kind: "snapshot", Version: version}
}

// Save replaces the snapshot, an object at a time. After an error the old one
// stands.
func Save(path string, objs iter.Seq[control.Object]) error {
	err := file(path).WriteFrom(func(w io.Writer) error {
		before := "["
		for o := range objs {
			js, err := control.Encode(o)
			if err != nil {
				return err
			}
			// A record, put together by hand: marshalling it would copy the object again.
			if _, err := fmt.Fprintf(w, `%s{"kind":%q,"object":%s}`, before, control.KindOf(o), js); err != nil {
				return err
			}
			before = ","
		}
		if before == "[" {
			before = "[]"
		} else {
			before = "]"
		}
		_, err := io.WriteString(w, before)
		return err
	})
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// Load reads the snapshot; no objects and no error if there is none. A
// *statefile.DamagedError says that there was one and that the start is cold.
func Load(path string) ([]control.Object, error) {
	var records []record
	if err := file(path).Read(&records); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	objs := make([]control.Object, len(records))
	for i, r := range records {
		kind, err := control.ParseKind(r.Kind)
		if err == nil {
			objs[i], err = control.DecodeStored(kind, r.Object)
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot: object %d: %w", i+1, err)
		}
	}
	return objs, nil
}
