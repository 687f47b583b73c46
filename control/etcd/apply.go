package etcd

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"vswitch/control"
)

// Applying is reading, judging and writing. Objects are judged in their order, each
// by what the store holds and those before it, and nothing is written until all
// have passed. They are written in transactions of many, on condition that what
// they were judged by has not changed; else the rest begins again with a new
// reading. So the cost of a file goes with what is in it, not with its square, and a
// file that fits into one transaction is applied as one or not at all. A longer one can
// end in the middle; what was written then is left as it is when it is applied again.

// batch is how much a transaction may be.
type batch struct{ objects, bytes int }

var (
	// wide is for the embedded store, which takes MaxTxnOps and MaxRequestBytes of package
	// embedded: with conditions and guards, and with what encoding adds.
	wide = batch{objects: 10_000, bytes: 6 << 20}
	// narrow is for any other, once it has refused a wide one: below the 128 operations and
	// the 1.5 MiB that etcd takes by default (--max-txn-ops, --max-request-bytes).
	narrow = batch{objects: 100, bytes: 1 << 20}
)

// errNarrow says that the store takes no wide transactions.
var errNarrow = errors.New("the store takes smaller transactions only")

// Apply creates or replaces objects that passed Validate, allocates what they leave
// open (ClusterIPs, NodePorts), and returns them as stored: all of them or, up to
// the first error, some. A bad object leaves nothing of its file behind; what another node writes in between can still have a later one refused. An
// object that is stored just so already is not written again and keeps its
// resource version.
func (s *Store) Apply(ctx context.Context, objs []control.Object) ([]control.Object, error) {
	for _, o := range objs {
		if err := control.Validate(o); err != nil {
			return nil, err
		}
	}
	var out []control.Object
	for attempt := 0; len(out) < len(objs); {
		stored, err := s.applyRest(ctx, objs[len(out):])
		out = append(out, stored...)
		switch {
		case err == nil:
		case errors.Is(err, errNarrow):
			s.narrow.Store(true)
			continue
		case !errors.Is(err, errRaced):
			return out, err
		case !yield(ctx, attempt):
			return out, s.wrap(ctx.Err())
		}
		attempt++
	}
	return out, nil
}

// applyRest judges objects by one reading of the store and writes as many as it
// can; errRaced says that the reading is no longer true.
func (s *Store) applyRest(ctx context.Context, objs []control.Object) ([]control.Object, error) {
	j, err := s.readJudge(ctx)
	if err != nil {
		return nil, err
	}
	judged := make([]control.Object, len(objs))
	for i, o := range objs {
		judged[i] = o.DeepCopyObject().(control.Object) // the next attempt allocates anew
		if err := j.judge(judged[i]); err != nil {
			return nil, err
		}
	}
	var out []control.Object
	for len(judged) > 0 {
		n := s.batch().length(judged)
		if err := s.writeBatch(ctx, j, judged[:n]); err != nil {
			return out, err
		}
		out, judged = append(out, judged[:n]...), judged[n:]
	}
	return out, nil
}

func (s *Store) batch() batch {
	if s.narrow.Load() {
		return narrow
	}
	return wide
}

// refused is the error of a transaction of a batch's size, or errNarrow.
func (s *Store) refused(err error) error {
	if !s.narrow.Load() && (errors.Is(err, rpctypes.ErrTooManyOps) || errors.Is(err, rpctypes.ErrRequestTooLarge) || status.Code(err) == codes.ResourceExhausted) {
		return errNarrow
	}
	return s.wrap(err)
}

// length is how many of the first objects may share a transaction, in which no
// key may be written twice.
func (b batch) length(objs []control.Object) int {
	seen := map[control.Key]bool{}
	for i, o := range objs {
		if i == b.objects || seen[control.KeyOf(o)] {
			return i
		}
		seen[control.KeyOf(o)] = true
	}
	return len(objs)
}

// judge is what objects are judged by: services and nodes as of one reading, and
// those that were judged since.
type judge struct {
	store    *Store
	services *control.ServiceAllocator
	nodes    []*corev1.Node
	rules    *control.Objects // of endpoints
	// guards are the keys that every writer of a kind changes, and the revisions they
	// had when last read or written.
	guards map[control.Kind]*guard
}

type guard struct {
	key      string
	revision int64
}

func (s *Store) readJudge(ctx context.Context) (*judge, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	services, nodes := s.key("guard", "services"), s.key("guard", "nodes")
	r, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(services),
		clientv3.OpGet(nodes),
		clientv3.OpGet(s.kindPrefix(control.KindService), clientv3.WithPrefix()),
		clientv3.OpGet(s.kindPrefix(control.KindNode), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return nil, s.wrap(err)
	}
	return &judge{
		store:    s,
		services: control.NewServiceAllocator(s.cfg.ServiceCIDRs, s.cfg.LoadBalancerCIDRs, decodeAll[*corev1.Service](s, kvsOf(r, 2))),
		nodes:    decodeAll[*corev1.Node](s, kvsOf(r, 3)),
		rules:    control.NewObjects(control.Self{ServiceCIDRs: s.cfg.ServiceCIDRs, LoadBalancerCIDRs: s.cfg.LoadBalancerCIDRs}),
		guards: map[control.Kind]*guard{
			control.KindService: {services, revisionOf(kvsOf(r, 0))},
			control.KindNode:    {nodes, revisionOf(kvsOf(r, 1))},
		},
	}, nil
}

// judge completes an object or says what is wrong with it.
func (j *judge) judge(o control.Object) error {
	switch o := o.(type) {
	case *corev1.Service:
		return j.services.Allocate(o)
	case *corev1.Node:
		if err := control.CheckNode(j.nodes, o, j.store.cfg.ServiceCIDRs); err != nil {
			return err
		}
		j.nodes = replaceNode(j.nodes, o)
		return nil
	case *discoveryv1.EndpointSlice:
		return j.rules.CheckEndpoints(o)
	}
	return &control.InvalidError{Object: control.KeyOf(o), Reason: "can't be applied: it is written by the node itself"}
}

// replaceNode puts n in the place of the node of its name, or behind them all.
func replaceNode(nodes []*corev1.Node, n *corev1.Node) []*corev1.Node {
	i := slices.IndexFunc(nodes, func(o *corev1.Node) bool { return o.Name == n.Name })
	if i < 0 {
		return append(nodes, n)
	}
	nodes[i] = n
	return nodes
}

// writeBatch writes judged objects of different keys in the places of their
// predecessors, in one transaction unless they are too long together.
func (s *Store) writeBatch(ctx context.Context, j *judge, objs []control.Object) error {
	old, err := s.predecessors(ctx, objs)
	if err != nil {
		return err
	}
	w := write{store: s, judge: j}
	for i, o := range objs {
		if err := w.add(ctx, o, old[i]); err != nil {
			return err
		}
	}
	return w.commit(ctx)
}

// predecessors reads what is stored in the objects' places, nil where nothing is.
func (s *Store) predecessors(ctx context.Context, objs []control.Object) ([]*mvccpb.KeyValue, error) {
	ctx, cancel := s.request(ctx)
	defer cancel()
	var gets []clientv3.Op
	for _, o := range objs {
		gets = append(gets, clientv3.OpGet(s.objectKey(control.KeyOf(o))))
	}
	r, err := s.client.Txn(ctx).Then(gets...).Commit()
	if err != nil {
		return nil, s.refused(err)
	}
	old := make([]*mvccpb.KeyValue, len(objs))
	for i := range objs {
		if kvs := kvsOf(r, i); len(kvs) > 0 {
			old[i] = kvs[0]
		}
	}
	return old, nil
}

// write is a transaction being put together.
type write struct {
	store      *Store
	judge      *judge
	conditions []clientv3.Cmp
	puts       []clientv3.Op
	objs       []control.Object
	guards     []*guard
	bytes      int
}

// add takes an object in, old being what it replaces; if they would be too long
// together, those before it are written first.
func (w *write) add(ctx context.Context, o control.Object, old *mvccpb.KeyValue) error {
	stamp(o)
	var oldRevision int64
	if old != nil {
		oldRevision = old.ModRevision
		if was, err := w.store.decode(old); err == nil {
			o.SetUID(was.GetUID())
			o.SetCreationTimestamp(was.GetCreationTimestamp())
		}
	}
	value, err := encode(o)
	if err != nil {
		return err
	}
	if old != nil && string(old.Value) == value {
		o.SetResourceVersion(strconv.FormatInt(oldRevision, 10))
		return nil
	}
	if w.bytes > 0 && w.bytes+len(value) > w.store.batch().bytes {
		if err := w.commit(ctx); err != nil {
			return err
		}
	}
	key := w.store.objectKey(control.KeyOf(o))
	w.conditions = append(w.conditions, unchanged(key, oldRevision))
	w.puts = append(w.puts, clientv3.OpPut(key, value))
	w.objs = append(w.objs, o)
	w.bytes += len(value)
	if g := w.judge.guards[control.KindOf(o)]; g != nil && !slices.Contains(w.guards, g) {
		w.guards = append(w.guards, g)
	}
	return nil
}

// commit writes what was added and gives the objects their resource version.
func (w *write) commit(ctx context.Context) error {
	if len(w.puts) == 0 {
		return nil
	}
	for _, g := range w.guards {
		w.conditions = append(w.conditions, unchanged(g.key, g.revision))
		w.puts = append(w.puts, clientv3.OpPut(g.key, w.store.cfg.Node))
	}
	ctx, cancel := w.store.request(ctx)
	defer cancel()
	r, err := w.store.client.Txn(ctx).If(w.conditions...).Then(w.puts...).Commit()
	if err != nil {
		return w.store.refused(err)
	}
	if !r.Succeeded {
		return errRaced
	}
	for _, o := range w.objs {
		o.SetResourceVersion(strconv.FormatInt(r.Header.Revision, 10))
	}
	for _, g := range w.guards {
		g.revision = r.Header.Revision
	}
	*w = write{store: w.store, judge: w.judge}
	return nil
}
