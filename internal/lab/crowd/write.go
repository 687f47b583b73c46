package crowd

import (
	"context"
	"fmt"
	"iter"
	"path"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Write puts the whole cluster into the etcd of an API server that does not run, as
// that stores it (kubernetes/staging/src/k8s.io/apiserver, storage/etcd3 and the
// protobuf serializer): by way of the API server each object would cost admission,
// validation and an audit line, minutes of CPU for what is only there to be read.
func (c *Crowd) Write(ctx context.Context, to *clientv3.Client) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []clientv3.Op, writers)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for ops := range work {
				if _, err := to.Txn(ctx).Then(ops...).Commit(); err != nil {
					cancel(fmt.Errorf("crowd: %w", err))
					return
				}
			}
		})
	}
	c.batches(ctx, work)
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// What etcd takes at once by default is 128 operations and 1.5 MiB.
const (
	batchOps, batchBytes = 100, 1 << 20
	writers              = 4
)

// batches encodes everything and hands it on.
func (c *Crowd) batches(ctx context.Context, to chan<- []clientv3.Op) {
	var ops []clientv3.Op
	size := 0
	flush := func() {
		if len(ops) == 0 {
			return
		}
		select {
		case to <- ops:
		case <-ctx.Done():
		}
		ops, size = nil, 0
	}
	for key, obj := range c.all() {
		b := encode(obj)
		if len(ops) == batchOps || size+len(b) > batchBytes {
			flush()
		}
		ops, size = append(ops, clientv3.OpPut(key, string(b))), size+len(b)
		if ctx.Err() != nil {
			return // a writer says why
		}
	}
	flush()
}

// all is every object by the key that the API server has it under.
func (c *Crowd) all() iter.Seq2[string, object] {
	return func(yield func(string, object) bool) {
		put := func(o object, under string) bool {
			return yield(path.Join("/registry", under, o.GetNamespace(), o.GetName()), o)
		}
		for i := range namespaces {
			if !put(c.namespace(i), "namespaces") {
				return
			}
		}
		for i := range c.Nodes {
			if !put(c.Node(i), "minions") {
				return
			}
		}
		for i := range c.Pods {
			if !put(c.Pod(i), "pods") {
				return
			}
		}
		for i := range c.AllServices() {
			if !put(c.Service(i), "services/specs") || !put(c.address(i), "ipaddresses") {
				return
			}
			for _, s := range c.Slices(i, 0, made.Time) {
				if !put(s, "endpointslices") {
					return
				}
			}
		}
	}
}
