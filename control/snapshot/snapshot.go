// Package snapshot keeps the last good objects of a node's control plane in a file,
// so that a daemon forwards from its start, before any source has answered (design
// decision 11), and beside it a journal of what changed since the file was written: a
// large cluster's objects take a second to write, and some change each second.
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
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"vswitch/control"
	"vswitch/control/statefile"
)

const (
	version        = 1
	journalVersion = 1
)

// record is one object as stored. In a journal it may be one that was deleted: then it is
// its key.
type record struct {
	Kind    string          `json:"kind"`
	Object  json.RawMessage `json:"object,omitempty"`
	Deleted *deleted        `json:"deleted,omitempty"`
}

type deleted struct {
	Scope string `json:"scope"`
	Name  string `json:"name"`
}

// Snapshot is the last good objects at a path. Its methods are called by one goroutine at
// a time.
type Snapshot struct {
	file    statefile.File
	journal statefile.Journal
	// Bytes of the objects when they were written whole, and of the journal since.
	whole, since int
}

// At is the snapshot at a path, with its journal at path.journal.
func At(path string) *Snapshot {
	return &Snapshot{
		file:    statefile.File{Path: path, Kind: "snapshot", Version: version},
		journal: statefile.Journal{Path: JournalOf(path), Kind: "snapshot-journal", Version: journalVersion},
	}
}

// JournalOf is where the journal of the snapshot at path is.
func JournalOf(path string) string { return path + ".journal" }

// Replace keeps these objects alone. It goes through them an object at a time. After an
// error the old ones stand, but for what was appended to them: Replace comes before the
// next Append.
func (s *Snapshot) Replace(objs iter.Seq[control.Object]) error {
	bytes := 0
	sum, err := s.file.WriteFrom(func(w io.Writer) error {
		before := "["
		var r []byte
		for o := range objs {
			var err error
			if r, err = appendRecord(append(r[:0], before...), o); err != nil {
				return err
			}
			n, err := w.Write(r)
			if err != nil {
				return err
			}
			bytes += n
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
	if err == nil {
		s.whole, s.since = bytes, 0
		err = s.journal.Begin(sum)
	}
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// appendRecord makes an object's record by hand: marshalling it would copy the object
// again.
func appendRecord(b []byte, o control.Object) ([]byte, error) {
	b, err := control.AppendEncoded(fmt.Appendf(b, `{"kind":%q,"object":`, control.KindOf(o)), o)
	return append(b, '}'), err
}

// Append keeps what changed: an object is as given, or, if nil, was deleted. After an
// error Replace comes before the next Append.
func (s *Snapshot) Append(changes iter.Seq2[control.Key, control.Object]) error {
	batch := []byte("[")
	for k, o := range changes {
		if len(batch) > 1 {
			batch = append(batch, ',')
		}
		var err error
		if o != nil {
			batch, err = appendRecord(batch, o)
		} else {
			var r []byte
			r, err = json.Marshal(record{Kind: k.Kind.String(), Deleted: &deleted{k.Scope, k.Name}})
			batch = append(batch, r...)
		}
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
	}
	n, err := s.journal.Append(append(batch, ']'))
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	s.since += n
	return nil
}

// journalLeast is how long a journal may be however little the objects are.
const journalLeast = 1 << 20 // bytes

// Long reports whether the journal has outgrown the objects, so that writing them whole
// again costs no more than it did.
func (s *Snapshot) Long() bool { return s.since > max(s.whole, journalLeast) }

// Load reads the snapshot; no objects and no error if there is none. EndpointSlices come
// as a set of objects keeps them, which is small. A
// *statefile.DamagedError says that there was one and that the start is cold.
func (s *Snapshot) Load() ([]control.Object, error) {
	objs, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return objs, nil
}

func (s *Snapshot) load() ([]control.Object, error) {
	var records []record
	sum, err := s.file.ReadSum(&records)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	objs := make([]control.Object, len(records))
	for i, r := range records {
		if objs[i], err = decode(r); err != nil {
			return nil, fmt.Errorf("object %d: %w", i+1, err)
		}
		records[i] = record{} // all of them as text beside all of them as objects is much
	}
	changes, err := s.journal.Read(sum)
	if err != nil {
		// What the journal said is not known, so what stands in the file may be wrong.
		return nil, errors.Join(err, s.file.SetAside(errors.New("its journal is damaged")))
	}
	if len(changes) == 0 {
		return objs, nil
	}
	return apply(objs, changes)
}

// apply returns the objects after changes.
func apply(objs []control.Object, batches [][]byte) ([]control.Object, error) {
	at := make(map[control.Key]int, len(objs))
	for i, o := range objs {
		at[control.KeyOf(o)] = i
	}
	for n, text := range batches {
		var batch []record
		if err := json.Unmarshal(text, &batch); err != nil {
			return nil, fmt.Errorf("batch %d of changes: %w", n+1, err)
		}
		for _, r := range batch {
			k, o, err := change(r)
			if err != nil {
				return nil, fmt.Errorf("batch %d of changes: %w", n+1, err)
			}
			if i, ok := at[k]; ok {
				objs[i] = o
			} else if o != nil {
				at[k] = len(objs)
				objs = append(objs, o)
			}
		}
	}
	return slices.DeleteFunc(objs, func(o control.Object) bool { return o == nil }), nil
}

// change is an object and its key, or of one that was deleted the key alone.
func change(r record) (control.Key, control.Object, error) {
	if r.Deleted == nil {
		o, err := decode(r)
		if err != nil {
			return control.Key{}, nil, err
		}
		return control.KeyOf(o), o, nil
	}
	kind, err := control.ParseKind(r.Kind)
	return control.Key{Kind: kind, Scope: r.Deleted.Scope, Name: r.Deleted.Name}, nil, err
}

func decode(r record) (control.Object, error) {
	kind, err := control.ParseKind(r.Kind)
	if err != nil {
		return nil, err
	}
	o, err := control.DecodeStored(kind, r.Object)
	if s, ok := o.(*discoveryv1.EndpointSlice); ok {
		return control.NewSlice(s, true), err
	}
	return o, err
}
