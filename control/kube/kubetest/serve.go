package kubetest

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// What a request is answered with.

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	resource, namespace, name := parsePath(r.URL.Path)
	if _, ok := kinds[resource]; !ok {
		refuse(w, http.StatusNotFound, "NotFound", r.URL.Path)
		return
	}
	verb := map[string]string{"GET": "get", "PATCH": "patch", "POST": "create"}[r.Method]
	if r.Method == "GET" && name == "" {
		verb = "list"
		if r.FormValue("watch") != "" && r.FormValue("watch") != "false" && r.FormValue("watch") != "0" {
			verb = "watch"
		}
	}
	s.mu.Lock()
	s.requests[verb+" "+resource]++
	s.mu.Unlock()
	switch verb {
	case "list":
		s.list(w, r, resource)
	case "watch":
		s.watch(w, r, resource)
	case "get":
		if o := s.Get(resource, namespace, name); o != nil {
			s.answer(w, o)
		} else {
			refuse(w, http.StatusNotFound, "NotFound", name)
		}
	case "patch":
		s.patch(w, r, resource, namespace+"/"+name)
	case "create":
		s.create(w, r, resource)
	default:
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", r.Method)
	}
}

// parsePath reads /api/v1/[namespaces/NS/]RESOURCE[/NAME[/status]] and its like
// below /apis/GROUP/VERSION.
func parsePath(path string) (resource, namespace, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	if len(parts) <= skip {
		return "", "", ""
	}
	parts = parts[skip:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		namespace, parts = parts[1], parts[2:]
	}
	resource = parts[0]
	if len(parts) > 1 {
		name = parts[1]
	}
	return resource, namespace, name
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(status(code, reason, message))
}

func status(code int, reason, message string) Object {
	return Object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
}

// answer writes what nothing changes while it is read: callers hold no lock, objects
// are replaced and not changed.
func (s *Server) answer(w http.ResponseWriter, o Object) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(o)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, resource string) {
	want, err := selectsOf(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	s.mu.Lock()
	items := []Object{}
	for _, o := range s.objects[resource] {
		if want.match(o) && !s.empty[resource] {
			items = append(items, o)
		}
	}
	version := s.version
	s.mu.Unlock()
	k := kinds[resource]
	s.answer(w, Object{
		"kind": k.kind + "List", "apiVersion": k.apiVersion, "items": items,
		"metadata": Object{"resourceVersion": strconv.FormatUint(version, 10)},
	})
}

// watch sends events, each a line, until the client hangs up or the test ends it.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string) {
	want, err := selectsOf(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	stream := r.FormValue("sendInitialEvents") == "true"
	from, _ := strconv.ParseUint(r.FormValue("resourceVersion"), 10, 64)
	k := kinds[resource]

	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case stream && s.noStream:
		refuse(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents: Forbidden")
		return
	case !stream && from < s.forgot:
		refuse(w, http.StatusGone, "Expired", "too old resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encode := json.NewEncoder(w)
	send := func(kind string, o Object) bool {
		s.mu.Unlock()
		defer s.mu.Lock()
		if encode.Encode(Object{"type": kind, "object": o}) != nil {
			return false
		}
		w.(http.Flusher).Flush()
		return true
	}
	// The header goes out at once, or the client would wait for the first event.
	s.mu.Unlock()
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	s.mu.Lock()

	epoch, sent := s.epoch, from
	if stream {
		sent = s.version
		var all []Object
		for _, o := range s.objects[resource] {
			if want.match(o) && !s.empty[resource] {
				all = append(all, o)
			}
		}
		for _, o := range all {
			if !send("ADDED", o) {
				return
			}
		}
		if !send("BOOKMARK", Object{"kind": k.kind, "apiVersion": k.apiVersion, "metadata": Object{
			"resourceVersion": strconv.FormatUint(sent, 10), "annotations": Object{"k8s.io/initial-events-end": "true"},
		}}) {
			return
		}
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a client that hangs up wakes the wait
		select {
		case <-r.Context().Done():
			s.do(func() {})
		case <-stop:
		}
	}()
	for {
		for s.epoch == epoch && r.Context().Err() == nil && !s.news(resource, sent) && sent >= s.forgot {
			s.changed.Wait()
		}
		if s.epoch != epoch || r.Context().Err() != nil {
			return
		}
		if sent < s.forgot { // the client was too slow
			send("ERROR", status(http.StatusGone, "Expired", "too old resource version"))
			return
		}
		for _, e := range s.since(resource, sent) {
			sent = e.version
			if kind, o := want.eventOf(&e); kind != "" && !s.sendAll(send, kind, o) {
				return
			}
		}
	}
}

// sendAll sends an object as events, garbled if the test asked for it.
func (s *Server) sendAll(send func(string, Object) bool, kind string, o Object) bool {
	objs := []Object{o}
	if s.garble != nil && kind != "DELETED" {
		objs = s.garble(o)
	}
	for _, o := range objs {
		if !send(kind, o) {
			return false
		}
	}
	return true
}

func (s *Server) news(resource string, since uint64) bool {
	return len(s.since(resource, since)) > 0
}

func (s *Server) since(resource string, version uint64) (out []event) {
	for i := len(s.log) - 1; i >= 0 && s.log[i].version > version; i-- {
		if s.log[i].resource == resource {
			out = append(out, s.log[i])
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// eventOf is a change as one who selects sees it: what no longer matches is deleted.
func (s *selects) eventOf(e *event) (kind string, o Object) {
	was, is := s.match(e.was), s.match(e.object)
	switch {
	case is && was:
		return "MODIFIED", e.object
	case is:
		return "ADDED", e.object
	case was:
		// The last state, with the version of the deletion.
		last := Object{}
		for k, v := range e.was {
			last[k] = v
		}
		m := map[string]any{}
		for k, v := range metaOf(e.was) {
			m[k] = v
		}
		m["resourceVersion"] = strconv.FormatUint(e.version, 10)
		last["metadata"] = m
		return "DELETED", last
	}
	return "", nil
}

// patch merges as RFC 7396 says.
func (s *Server) patch(w http.ResponseWriter, r *http.Request, resource, key string) {
	body, err := io.ReadAll(r.Body)
	var change Object
	if err == nil {
		err = json.Unmarshal(body, &change)
	}
	if err != nil || r.Header.Get("Content-Type") != "application/merge-patch+json" {
		refuse(w, http.StatusUnsupportedMediaType, "UnsupportedMediaType", r.Header.Get("Content-Type"))
		return
	}
	var out Object
	s.do(func() {
		if was := s.objects[resource][key]; was != nil {
			out = merge(was, change)
			s.put(resource, out)
		}
	})
	if out == nil {
		refuse(w, http.StatusNotFound, "NotFound", key)
		return
	}
	s.answer(w, out)
}

func merge(into, change Object) Object {
	out := Object{}
	for k, v := range into {
		out[k] = v
	}
	for k, v := range change {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			old, _ := out[k].(map[string]any)
			out[k] = merge(old, v)
		default:
			out[k] = v
		}
	}
	return out
}

func (s *Server) create(w http.ResponseWriter, r *http.Request, resource string) {
	var o Object
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
		return
	}
	exists := false
	s.do(func() {
		if exists = s.objects[resource][keyOf(o)] != nil; !exists {
			s.put(resource, o)
		}
	})
	if exists {
		refuse(w, http.StatusConflict, "AlreadyExists", keyOf(o))
		return
	}
	s.answer(w, o)
}
