package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/lab"
)

// How a node fares that joins a large cluster: how long until it knows it, what that
// takes, and how it follows changes.

// changesPerSecond is the churn of Kubernetes' own service level objectives
// (sig-scalability/slos, "20 pods a second").
const changesPerSecond = 20

// syncMetrics are the load's. sync is from the daemon's start, without what it knew
// before, until all is programmed. memory is the peak of both processes by the end,
// cpu theirs while services change. p50 and p99 are from when a change happened, before
// the API server is told, until a packet would take the new endpoint.
var syncMetrics = []metric{
	{"sync", "s", false}, {"memory", "MB", false}, {"cpu", "% of a core", false}, {"p50", "ms", false}, {"p99", "ms", false},
	{"correct", "% of lookups", true}, {"rest", "MB", false},
}

// syncOnce starts the daemon anew, and changes services for twice d.
func syncOnce(ctx context.Context, _ *Load, n *network, d time.Duration, _ string) (measurement, error) {
	k := n.kubernetes
	m := measurement{figures: map[string]float64{}}
	took, err := k.restart(ctx)
	if err != nil {
		return m, err
	}
	m.figures["sync"] = took.Seconds()
	if err := k.calm(ctx); err != nil {
		return m, err
	}
	daemon, err := k.processes()
	if err != nil {
		return m, err
	}
	before, err := daemon.runTime()
	if err != nil {
		return m, err
	}
	began := time.Now()
	if err := k.churn(ctx, d, k.change); err != nil {
		return m, err
	}
	after, err := daemon.runTime()
	if err != nil {
		return m, err
	}
	m.figures["cpu"] = 100 * (after - before).Seconds() / time.Since(began).Seconds()

	latencies, err := k.timedChanges(ctx, d)
	if err != nil {
		return m, err
	}
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99} {
		m.figures[name] = float64(latencies[int(float64(len(latencies)-1)*share)]) / float64(time.Millisecond)
	}
	peak, rest, err := daemon.memory()
	if err != nil {
		return m, err
	}
	m.figures["memory"], m.figures["rest"] = float64(peak)/1e6, float64(rest)/1e6
	asked, wrong, err := k.lookUp(ctx)
	if err != nil {
		return m, err
	}
	m.figures["correct"] = 100 * float64(asked-len(wrong)) / float64(asked)
	m.detail = map[string]any{"lookups": asked, "wrong": wrong[:min(len(wrong), 20)], "changes": int(2 * d.Seconds() * changesPerSecond), "timed": len(latencies)}
	return m, nil
}

// restart starts the daemon with its pods and its claim but nothing known of the
// cluster, and returns how long it took to know all.
func (k *kubernetes) restart(ctx context.Context) (time.Duration, error) {
	k.node.Daemon().Kill() // what it would write at its end is not wanted
	if err := os.Remove(k.lastGood()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	began := time.Now()
	if err := k.node.RestartDaemon(ctx); err != nil {
		return 0, err
	}
	if err := k.synced(ctx); err != nil {
		return 0, err
	}
	took := time.Since(began)
	_, err := k.node.Exec(ctx, lab.Command{
		Name: "reattach", Path: filepath.Join(k.lab.BinDir(), "vswitch-cni"), Args: []string{"reattach", "--socket", k.node.Socket()},
	})
	return took, err
}

// lastGood is where the daemon keeps what it knows of the cluster.
func (k *kubernetes) lastGood() string { return filepath.Join(k.node.StateDir(), "objects.json") }

// synced waits until the daemon says that it has programmed all there is.
func (k *kubernetes) synced(ctx context.Context) error {
	want := map[string]float64{
		`vswitch_store_reachable`:               1,
		`vswitch_objects{kind="Node"}`:          float64(k.crowd.Nodes),
		`vswitch_objects{kind="Service"}`:       float64(k.crowd.AllServices() + k.others),
		`vswitch_objects{kind="EndpointSlice"}`: float64(k.crowd.AllSlices() + k.others),
	}
	for {
		has, err := k.metrics(ctx)
		if err == nil {
			for name, v := range want {
				if has[name] != v {
					err = fmt.Errorf("%s is %v, want %v", name, has[name], v)
				}
			}
		}
		if err == nil {
			return nil
		}
		if waited := pause(ctx, 25*time.Millisecond); waited != nil { // between two looks
			return errors.Join(waited, err)
		}
	}
}

// calm waits until the daemon has kept what it knows and uses next to nothing.
func (k *kubernetes) calm(ctx context.Context) error {
	daemon, err := k.processes()
	if err != nil {
		return err
	}
	const period, idle = time.Second, 0.05
	for {
		before, err := daemon.runTime()
		if err != nil {
			return err
		}
		if err := pause(ctx, period); err != nil { // what is measured is time passing
			return fmt.Errorf("the daemon does not come to rest: %w", err)
		}
		after, err := daemon.runTime()
		if err != nil {
			return err
		}
		if _, err := os.Stat(k.lastGood()); err == nil && (after-before).Seconds() < idle*period.Seconds() {
			return nil
		}
	}
}

// churn changes services at a steady rate, whatever each change takes. Those under way
// at the end are waited for.
func (k *kubernetes) churn(ctx context.Context, d time.Duration, change func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range max(int(d.Seconds()*changesPerSecond), 1) {
		if err := pause(ctx, time.Until(begin.Add(time.Duration(i)*time.Second/changesPerSecond))); err != nil {
			break
		}
		wg.Go(func() {
			if err := change(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// change replaces an endpoint of one of the crowd's services: the i-th change of a churn.
func (k *kubernetes) change(ctx context.Context, i int) error {
	_, err := k.write(ctx, i*7919%k.crowd.Services) // all over the place
	return err
}

// write replaces a service's first endpoint in the API server, and says when.
func (k *kubernetes) write(ctx context.Context, service int) (time.Time, error) {
	k.changes[service]++
	when := time.Now()
	return when, k.put(ctx, k.crowd.Slices(service, k.changes[service], when)[0])
}

// timedChanges changes probes for a while, and returns how long each change took until
// a packet would take the new endpoint, sorted.
func (k *kubernetes) timedChanges(ctx context.Context, d time.Duration) ([]time.Duration, error) {
	daemon, err := apiv1.Dial(ctx, k.node.Socket())
	if err != nil {
		return nil, err
	}
	defer daemon.Close()
	var mu sync.Mutex
	var all []time.Duration
	err = k.churn(ctx, d, func(ctx context.Context, i int) error {
		service := k.crowd.Services + i%k.crowd.Probes
		when, err := k.write(ctx, service)
		if err != nil {
			return err
		}
		for {
			l, err := k.trace(ctx, daemon, k.crowd.VIP(service), servicePort)
			if err != nil {
				return err
			}
			took := time.Since(when)
			if k.expected(service, l) == nil {
				mu.Lock()
				all = append(all, took)
				mu.Unlock()
				return nil
			}
			if err := pause(ctx, time.Millisecond); err != nil { // between two looks
				return err
			}
		}
	})
	slices.Sort(all)
	return all, err
}
