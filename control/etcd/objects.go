package etcd

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
)

// stamp gives a new object what its maker gives it: an identity and a birthday.
// What a user's file says of either belongs to another store.
func stamp(o control.Object) {
	o.SetUID(types.UID(newUUID()))
	o.SetCreationTimestamp(metav1.NewTime(time.Now().UTC().Truncate(time.Second)))
	o.SetResourceVersion("")
	o.SetManagedFields(nil)
}

// Delete implements control.Store.
func (s *Store) Delete(ctx context.Context, kind control.Kind, namespace, name string) error {
	key := control.Key{Kind: kind, Scope: namespace, Name: name}
	switch kind {
	case control.KindNode:
		return s.deleteNode(ctx, name)
	case control.KindService, control.KindEndpointSlice:
	default:
		return &control.InvalidError{Object: key, Reason: "can't be deleted: it goes with what it records"}
	}
	ops := []clientv3.Op{clientv3.OpDelete(s.objectKey(key))}
	if kind == control.KindService {
		ops = append(ops, clientv3.OpPut(s.key("guard", "services"), s.cfg.Node))
	}
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Txn(ctx).If(exists(s.objectKey(key))).Then(ops...).Commit()
	if err != nil {
		return s.wrap(err)
	}
	if !r.Succeeded {
		return fmt.Errorf("%s: %w", key, control.ErrNotFound)
	}
	return nil
}

// newUUID is a random one (RFC 9562 section 5.4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// List implements control.Store.
func (s *Store) List(ctx context.Context, kind control.Kind) ([]control.Object, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	r, err := s.client.Get(ctx, s.kindPrefix(kind), clientv3.WithPrefix())
	if err != nil {
		return nil, s.wrap(err)
	}
	return decodeAll[control.Object](s, r.Kvs), nil
}
