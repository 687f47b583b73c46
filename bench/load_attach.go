package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vswitch/internal/lab"
)

// attachment is how long a pod takes, roughly, with its namespace and its end.
const attachment = 40 * time.Millisecond

// attach makes pods' namespaces, as many as l.Times, then measures how long each of their
// ADDs takes, l.Streams at a time, and all together. It deletes them afterwards, unmeasured.
func attach(ctx context.Context, l *Load, n *network, _ time.Duration, _ string) (m measurement, err error) {
	pods := make([]*lab.Pod, max(l.Times, 1))
	defer func() {
		for _, p := range pods {
			if p != nil {
				err = errors.Join(err, p.Delete(context.WithoutCancel(ctx)))
			}
		}
	}()
	for i := range pods {
		spec := n.pod
		spec.Name = fmt.Sprintf("pod-%d", i)
		if pods[i], err = n.node.NewPod(spec); err != nil {
			return m, err
		}
	}
	took := make([]time.Duration, len(pods))
	errs := make([]error, len(pods))
	next := make(chan int)
	var workers sync.WaitGroup
	began := time.Now()
	for range max(l.Streams, 1) {
		workers.Go(func() {
			for i := range next {
				start := time.Now()
				errs[i] = pods[i].Add(ctx)
				took[i] = time.Since(start)
			}
		})
	}
	for i := range pods {
		next <- i
	}
	close(next)
	workers.Wait()
	all := time.Since(began)
	if err := errors.Join(errs...); err != nil {
		return m, err
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))]) / 1e6 }
	m.figures = map[string]float64{"p50": at(0.5), "p99": at(0.99), "all": all.Seconds()}
	return m, nil
}
