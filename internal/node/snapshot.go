package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"vswitch/control"
	"vswitch/control/statefile"
)

// snapshot is the file of the last good objects: what a node forwards by when it
// starts and no store answers.
type snapshot string

func (s snapshot) file() statefile.File {
	return statefile.File{Path: string(s), Kind: "objects", Version: 1}
}

func (s snapshot) save(objs []control.Object) error {
	docs := make([]json.RawMessage, 0, len(objs))
	for _, o := range objs {
		doc, err := control.Encode(o)
		if err != nil {
			return err
		}
		docs = append(docs, doc)
	}
	return s.file().Write(docs)
}

// load reads what save wrote last; nothing where there is no file.
func (s snapshot) load() ([]control.Object, error) {
	var docs []json.RawMessage
	err := s.file().Read(&docs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var objs []control.Object
	for i, doc := range docs {
		var meta metav1.TypeMeta
		if err := json.Unmarshal(doc, &meta); err != nil {
			return nil, fmt.Errorf("%s: object %d: %w", s, i, err)
		}
		kind, err := control.ParseKind(meta.Kind)
		if err != nil {
			return nil, fmt.Errorf("%s: object %d: %w", s, i, err)
		}
		o, err := control.DecodeStored(kind, doc)
		if err != nil {
			return nil, fmt.Errorf("%s: object %d: %w", s, i, err)
		}
		objs = append(objs, o)
	}
	return objs, nil
}
