package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"vswitch/control"
)

// Apply implements control.Store. All are checked before the first is written, so
// that a bad one leaves nothing behind; what another node writes in between can
// still have a later one refused. An object that is stored just so already is not
// written again and keeps its resource version.
func (s *Store) Apply(ctx context.Context, objs []control.Object) ([]control.Object, error) {
	var out []control.Object
	for _, o := range objs {
		if err := control.Validate(o); err != nil {
			return out, err
		}
	}
	if len(objs) > 1 { // one alone is checked as it is written
		if err := s.rehearse(ctx, objs); err != nil {
			return out, err
		}
	}
	for _, o := range objs {
		stored, err := s.applyOne(ctx, o)
		if err != nil {
			return out, err
		}
		out = append(out, stored)
	}
	return out, nil
}

// applyOne tries until no other write comes in between.
func (s *Store) applyOne(ctx context.Context, o control.Object) (control.Object, error) {
	for attempt := 0; ; attempt++ {
		// Each attempt allocates into a copy of its own.
		fresh := o.DeepCopyObject().(control.Object)
		stored, err := s.tryApply(ctx, fresh)
		if !errors.Is(err, errRaced) {
			return stored, err
		}
		if !yield(ctx, attempt) {
			return nil, s.wrap(ctx.Err())
		}
	}
}

func (s *Store) tryApply(ctx context.Context, o control.Object) (control.Object, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	switch o := o.(type) {
	case *corev1.Service:
		return s.applyService(ctx, o)
	case *discoveryv1.EndpointSlice:
		return s.applySlice(ctx, o)
	case *corev1.Node:
		return s.applyNode(ctx, o)
	}
	return nil, &control.InvalidError{Object: control.KeyOf(o), Reason: "can't be applied: it is written by the node itself"}
}

func (s *Store) applyService(ctx context.Context, svc *corev1.Service) (control.Object, error) {
	guard := s.key("guard", "services")
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(guard),
		clientv3.OpGet(s.kindPrefix(control.KindService), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	records := kvsOf(r, 1)
	svc.Status = corev1.ServiceStatus{}
	a := control.NewServiceAllocator(s.cfg.ServiceCIDRs, decodeAll[*corev1.Service](s, records))
	if err := a.Allocate(svc); err != nil {
		return nil, err
	}
	return s.put(ctx, svc, records, guard, revisionOf(kvsOf(r, 0)))
}

func (s *Store) applySlice(ctx context.Context, slice *discoveryv1.EndpointSlice) (control.Object, error) {
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
		clientv3.OpGet(s.objectKey(control.KeyOf(slice))),
	).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	if err := s.endpointRules(decodeAll[*corev1.Node](s, kvsOf(r, 0))).CheckEndpoints(slice); err != nil {
		return nil, err
	}
	return s.put(ctx, slice, kvsOf(r, 1), "", 0)
}

func (s *Store) applyNode(ctx context.Context, n *corev1.Node) (control.Object, error) {
	guard := s.key("guard", "nodes")
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(guard),
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	if err := control.CheckNode(decodeAll[*corev1.Node](s, kvsOf(r, 1)), n, s.cfg.ServiceCIDRs); err != nil {
		return nil, err
	}
	return s.put(ctx, n, kvsOf(r, 1), guard, revisionOf(kvsOf(r, 0)))
}

// put writes o in the place of its predecessor among records, on condition that
// neither that nor the guard, if there is one, changed since they were read.
func (s *Store) put(ctx context.Context, o control.Object, records []*mvccpb.KeyValue, guard string, guardRevision int64) (control.Object, error) {
	key := s.objectKey(control.KeyOf(o))
	var old *mvccpb.KeyValue
	for _, kv := range records {
		if string(kv.Key) == key {
			old = kv
		}
	}
	stamp(o)
	var oldRevision int64
	if old != nil {
		oldRevision = old.ModRevision
		if was, err := s.decode(old); err == nil {
			o.SetUID(was.GetUID())
			o.SetCreationTimestamp(was.GetCreationTimestamp())
		}
	}
	value, err := encode(o)
	if err != nil {
		return nil, err
	}
	if old != nil && string(old.Value) == value {
		o.SetResourceVersion(strconv.FormatInt(old.ModRevision, 10))
		return o, nil
	}
	conditions := []clientv3.Cmp{unchanged(key, oldRevision)}
	writes := []clientv3.Op{clientv3.OpPut(key, value)}
	if guard != "" {
		conditions = append(conditions, unchanged(guard, guardRevision))
		writes = append(writes, clientv3.OpPut(guard, s.cfg.Node))
	}
	r, err := s.client.Txn(ctx).If(conditions...).Then(writes...).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	if !r.Succeeded {
		return nil, errRaced
	}
	o.SetResourceVersion(strconv.FormatInt(r.Header.Revision, 10))
	return o, nil
}

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
