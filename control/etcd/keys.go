package etcd

import (
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"vswitch/control"
)

func (s *Store) key(parts ...string) string { return s.cfg.Prefix + strings.Join(parts, "/") }

// objectKey is where an object is kept.
func (s *Store) objectKey(k control.Key) string {
	if k.Scope == "" {
		return s.key(k.Kind.Plural(), k.Name)
	}
	return s.key(k.Kind.Plural(), k.Scope, k.Name)
}

func (s *Store) kindPrefix(kind control.Kind) string { return s.key(kind.Plural()) + "/" }

var objectKinds = []control.Kind{
	control.KindNode, control.KindLease, control.KindPod, control.KindService, control.KindEndpointSlice,
}

// parseKey is the inverse of objectKey; not ok for a key that holds no object.
func (s *Store) parseKey(key string) (k control.Key, ok bool) {
	rest, ok := strings.CutPrefix(key, s.cfg.Prefix)
	if !ok {
		return k, false
	}
	plural, rest, _ := strings.Cut(rest, "/")
	for _, kind := range objectKinds {
		if plural != kind.Plural() {
			continue
		}
		switch kind {
		case control.KindNode, control.KindLease:
			return control.Key{Kind: kind, Name: rest}, rest != ""
		}
		scope, name, _ := strings.Cut(rest, "/")
		return control.Key{Kind: kind, Scope: scope, Name: name}, scope != "" && name != ""
	}
	return k, false
}

// decode reads a stored object; its resource version is the store's revision.
func (s *Store) decode(kv *mvccpb.KeyValue) (control.Object, error) {
	key, ok := s.parseKey(string(kv.Key))
	if !ok {
		return nil, fmt.Errorf("store: key %q holds no object", kv.Key)
	}
	o, err := control.DecodeStored(key.Kind, kv.Value)
	if err != nil {
		return nil, fmt.Errorf("store: key %q: %w", kv.Key, err)
	}
	if got := control.KeyOf(o); got != key {
		return nil, fmt.Errorf("store: key %q holds %s", kv.Key, got)
	}
	o.SetResourceVersion(strconv.FormatInt(kv.ModRevision, 10))
	return o, nil
}

// decodeAll reads stored objects of one type. A record that can't be read is
// logged and left out: it must not keep all others from being seen.
func decodeAll[T control.Object](s *Store, kvs []*mvccpb.KeyValue) []T {
	out := make([]T, 0, len(kvs))
	for _, kv := range kvs {
		o, err := s.decode(kv)
		if err != nil {
			s.log.Error("record in the store is not readable", "err", err)
			continue
		}
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// encode is the stored form, without the version that is the store's own.
func encode(o control.Object) (string, error) {
	o = o.DeepCopyObject().(control.Object)
	o.SetResourceVersion("")
	js, err := control.Encode(o)
	return string(js), err
}

func missing(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

func exists(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }

func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// revisionOf is the revision in which a key of a read was written, 0 if it isn't there.
func revisionOf(kvs []*mvccpb.KeyValue) int64 {
	if len(kvs) == 0 {
		return 0
	}
	return kvs[0].ModRevision
}
