package control

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// appendJSON appends the EndpointSlice as JSON. It is written by hand, as the last good
// objects of a large cluster are mostly slices: encoding/json takes twice as long for
// them, and leaves 32 MB of garbage for 150,000 endpoints (BenchmarkReplace).
func (s *Slice) appendJSON(b []byte) ([]byte, error) {
	w := jsonWriter(b)
	w.open("", '{')
	w.text("kind", KindEndpointSlice.String())
	w.text("apiVersion", KindEndpointSlice.APIVersion())
	w.open("metadata", '{')
	w.text("name", s.Name)
	w.notEmpty("namespace", s.Namespace)
	w.notEmpty("uid", string(s.UID))
	w.notEmpty("resourceVersion", s.ResourceVersion)
	if s.service != "" {
		w.open("labels", '{')
		w.text(discoveryv1.LabelServiceName, s.service)
		w.close('}')
	}
	if s.triggered != "" {
		w.open("annotations", '{')
		w.text(corev1.EndpointsLastChangeTriggerTime, s.triggered)
		w.close('}')
	}
	w.close('}')
	w.text("addressType", string(s.addressType))
	w.open("endpoints", '[')
	for _, e := range s.each {
		w.open("", '{')
		w.open("addresses", '[')
		if e.addr.IsValid() {
			w.next("")
			w = append(w, '"')
			w = append(e.addr.AppendTo(w), '"')
		} else if e.hasAddress() {
			w.text("", e.address())
		}
		w.close(']')
		w.open("conditions", '{')
		w.condition("ready", e.says, saysReady, isReady)
		w.condition("serving", e.says, saysServing, isServing)
		w.condition("terminating", e.says, saysTerminating, isTerminating)
		w.close('}')
		if e.says&saysUID != 0 || e.more != nil && e.more.uid != "" {
			w.open("targetRef", '{')
			if e.says&saysUID != 0 {
				text := formatUID(e.uid)
				w.next("uid")
				w = append(append(append(w, '"'), text[:]...), '"')
			} else {
				w.text("uid", e.more.uid)
			}
			w.close('}')
		}
		if e.says&saysNode != 0 {
			w.text("nodeName", e.node.Value())
		}
		if e.more != nil && e.more.hostname != nil {
			w.text("hostname", *e.more.hostname)
		}
		if e.more != nil && e.more.hints != nil {
			text, err := json.Marshal(e.more.hints)
			if err != nil {
				return b, fmt.Errorf("control: encode %s: %w", KeyOf(s), err)
			}
			w.next("hints")
			w = append(w, text...)
		}
		w.close('}')
	}
	w.close(']')
	w.open("ports", '[')
	for i := range s.ports {
		p := &s.ports[i]
		w.open("", '{')
		if p.hasName {
			w.text("name", p.name)
		}
		if p.hasProtocol {
			w.text("protocol", p.protocol)
		}
		if p.hasNo {
			w.next("port")
			w = strconv.AppendInt(w, int64(p.number), 10)
		}
		w.close('}')
	}
	w.close(']')
	w.close('}')
	return w, nil
}

// jsonWriter is JSON as far as it is written.
type jsonWriter []byte

// next puts a comma where one belongs, and a key unless it is empty, as in a list.
func (w *jsonWriter) next(key string) {
	if n := len(*w); n > 0 && (*w)[n-1] != '{' && (*w)[n-1] != '[' && (*w)[n-1] != ':' {
		*w = append(*w, ',')
	}
	if key != "" {
		*w = append(append(append(*w, '"'), key...), `":`...)
	}
}

func (w *jsonWriter) open(key string, bracket byte) {
	w.next(key)
	*w = append(*w, bracket)
}

func (w *jsonWriter) close(bracket byte) { *w = append(*w, bracket) }

func (w *jsonWriter) text(key, s string) {
	w.next(key)
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // a string always can be
			*w = append(*w, quoted...)
			return
		}
	}
	*w = append(append(append(*w, '"'), s...), '"')
}

func (w *jsonWriter) notEmpty(key, s string) {
	if s != "" {
		w.text(key, s)
	}
}

func (w *jsonWriter) condition(key string, all, says, is said) {
	if all&says != 0 {
		w.next(key)
		*w = strconv.AppendBool(*w, all&is != 0)
	}
}
