package crowd

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"path"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
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
	err := c.batches(ctx, work)
	close(work)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// What etcd takes at once by default is 128 operations and 1.5 MiB.
const (
	batchOps, batchBytes = 100, 1 << 20
	writers              = 4
)

// batches encodes everything and hands it on.
func (c *Crowd) batches(ctx context.Context, to chan<- []clientv3.Op) error {
	storage := protobuf.NewSerializer(nil, nil)
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
	var b bytes.Buffer
	for key, obj := range c.all() {
		b.Reset()
		if err := storage.Encode(obj, &b); err != nil {
			return fmt.Errorf("crowd: %s: %w", key, err)
		}
		if len(ops) == batchOps || size+b.Len() > batchBytes {
			flush()
		}
		ops, size = append(ops, clientv3.OpPut(key, b.String())), size+b.Len()
		if ctx.Err() != nil {
			return nil // a writer says why
		}
	}
	flush()
	return nil
}

// all is every object by the key that the API server has it under.
func (c *Crowd) all() iter.Seq2[string, runtime.Object] {
	return func(yield func(string, runtime.Object) bool) {
		put := func(o interface {
			runtime.Object
			metav1.Object
		}, under string) bool {
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
