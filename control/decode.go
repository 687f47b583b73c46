package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	strictjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Decode reads objects a user wrote: YAML or JSON, several documents separated
// by "---", lists of kind List unfolded. It is strict, as a mistyped field would
// otherwise be a policy silently not applied: an unknown or repeated field, a
// wrong type, a wrong kind or apiVersion is an error that names the document and
// says what is right. Objects of namespaced kinds without a namespace get
// "default". What comes back has passed Validate.
func Decode(data []byte) ([]Object, error) {
	var out []Object
	docs, err := splitDocuments(data)
	if err != nil {
		return nil, err
	}
	for i, doc := range docs {
		objs, err := decodeDocument(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", i+1, err)
		}
		out = append(out, objs...)
	}
	if len(out) == 0 {
		return nil, errors.New("no object in the input; want YAML or JSON documents of kind Service, EndpointSlice or Node")
	}
	return out, nil
}

// splitDocuments cuts YAML at its separators, or a stream of JSON values apart,
// and returns those that are not empty as JSON.
func splitDocuments(data []byte) ([][]byte, error) {
	if utilyaml.IsJSONBuffer(data) {
		return splitJSON(data)
	}
	var docs [][]byte
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		js, err := yaml.YAMLToJSONStrict(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		if js = bytes.TrimSpace(js); len(js) > 0 && !bytes.Equal(js, []byte("null")) {
			docs = append(docs, js)
		}
	}
}

func splitJSON(data []byte) ([][]byte, error) {
	var docs [][]byte
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		var raw json.RawMessage
		switch err := d.Decode(&raw); {
		case errors.Is(err, io.EOF):
			return docs, nil
		case err != nil:
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		docs = append(docs, raw)
	}
}

func decodeDocument(doc []byte) ([]Object, error) {
	var meta metav1.TypeMeta
	if err := json.Unmarshal(doc, &meta); err != nil {
		return nil, fmt.Errorf("want an object with apiVersion and kind: %w", err)
	}
	if meta.Kind == "List" {
		return decodeList(doc)
	}
	kind, err := kindFor(meta)
	if err != nil {
		return nil, err
	}
	o := newObject(kind)
	if err := strictUnmarshal(doc, o); err != nil {
		return nil, fmt.Errorf("%s %q: %w", kind, o.GetName(), err)
	}
	Default(o)
	if err := Validate(o); err != nil {
		return nil, err
	}
	return []Object{o}, nil
}

func decodeList(doc []byte) ([]Object, error) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        json.RawMessage   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	if err := strictUnmarshal(doc, &list); err != nil {
		return nil, fmt.Errorf("List: %w", err)
	}
	var out []Object
	for i, item := range list.Items {
		objs, err := decodeDocument(item)
		if err != nil {
			return nil, fmt.Errorf("items[%d]: %w", i, err)
		}
		out = append(out, objs...)
	}
	return out, nil
}

// kindFor is the kind a user's document has, if users may apply it.
func kindFor(meta metav1.TypeMeta) (Kind, error) {
	const accepted = "want v1 Service, discovery.k8s.io/v1 EndpointSlice or v1 Node"
	for kind, n := range kinds {
		if n.name != meta.Kind {
			continue
		}
		switch {
		case kind == KindPod || kind == KindLease:
			return 0, fmt.Errorf("kind %q can't be applied: it is written by the node itself; %s", meta.Kind, accepted)
		case n.apiVersion != meta.APIVersion:
			return 0, fmt.Errorf("kind %s has apiVersion %q; want %q", meta.Kind, meta.APIVersion, n.apiVersion)
		}
		return kind, nil
	}
	if meta.Kind == "" {
		return 0, errors.New("no kind; " + accepted)
	}
	return 0, fmt.Errorf("kind %q of apiVersion %q is not known; %s", meta.Kind, meta.APIVersion, accepted)
}

// strictUnmarshal decodes JSON with exact field names, reporting every unknown
// or repeated one.
func strictUnmarshal(doc []byte, into any) error {
	strict, err := strictjson.UnmarshalStrict(doc, into)
	if err != nil {
		return err
	}
	if len(strict) > 0 {
		msgs := make([]string, len(strict))
		for i, e := range strict {
			msgs[i] = e.Error()
		}
		return errors.New(strings.Join(msgs, ", "))
	}
	return nil
}

// Encode is the stored form of o: its JSON, with kind and apiVersion.
func Encode(o Object) ([]byte, error) { return AppendEncoded(nil, o) }

// AppendEncoded appends the stored form of o.
func AppendEncoded(b []byte, o Object) ([]byte, error) {
	if s, ok := o.(*Slice); ok {
		return s.appendJSON(b)
	}
	kind := KindOf(o)
	js, err := json.Marshal(o)
	if err != nil {
		return b, fmt.Errorf("control: encode %s: %w", KeyOf(o), err)
	}
	if o.GetObjectKind().GroupVersionKind().Kind == "" {
		b = fmt.Appendf(b, `{"kind":%q,"apiVersion":%q`, kind.String(), kind.APIVersion())
		if js = js[1:]; len(js) > 1 {
			b = append(b, ',')
		}
	}
	return append(b, js...), nil
}

// DecodeStored reads what Encode wrote, of a kind that is known from where it was
// stored. It accepts fields it does not know: a newer node may have written them.
func DecodeStored(kind Kind, js []byte) (Object, error) {
	o := newObject(kind)
	if o == nil {
		return nil, fmt.Errorf("control: decode: no kind %d", kind)
	}
	if err := strictjson.UnmarshalCaseSensitivePreserveInts(js, o); err != nil {
		return nil, fmt.Errorf("control: decode %s: %w", kind, err)
	}
	return o, nil
}
