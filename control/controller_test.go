package control

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lockedDataplane is a strictDataplane that a test may look at while Run uses it.
type lockedDataplane struct {
	mu sync.Mutex
	*strictDataplane
}

func (d *lockedDataplane) PutTunnel(t Tunnel) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.strictDataplane.PutTunnel(t)
}

func (d *lockedDataplane) PutService(s Service) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.strictDataplane.PutService(s)
}

func (d *lockedDataplane) Together(f func()) { f() }

func (d *lockedDataplane) DeleteTunnel(k TunnelKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.strictDataplane.DeleteTunnel(k)
}

func (d *lockedDataplane) DeleteService(k ServiceKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.strictDataplane.DeleteService(k)
}

func (d *lockedDataplane) has(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.services[ServiceKey{Namespace: "default", Name: name}]
	return ok
}

type running struct {
	*Controller
	dp   *lockedDataplane
	stop func()

	t  *testing.T
	mu sync.Mutex // guards what follows

	saves   [][]Object
	appends int   // of them
	fail    error // of the next saves
	failed  bool  // the last save
	long    bool  // the journal has grown
}

// runController runs one in the test's bubble.
func runController(t *testing.T, restore ...Object) *running {
	r := &running{t: t, dp: &lockedDataplane{strictDataplane: newStrictDataplane()}}
	r.Controller = NewController(ControllerConfig{
		Self: testSelf, Dataplane: r.dp, Log: discard(),
		LastGood: r,
	})
	r.Restore(restore)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// Replace implements LastGood.
func (r *running) Replace(objs iter.Seq[Object]) error {
	all := map[Key]Object{}
	for o := range objs {
		all[KeyOf(o)] = o
	}
	return r.save(all)
}

// Append implements LastGood.
func (r *running) Append(changes iter.Seq2[Key, Object]) error {
	r.mu.Lock()
	if r.failed || len(r.saves) == 0 {
		r.t.Error("changes are appended where all objects have to be written")
	}
	all := map[Key]Object{}
	for _, o := range r.saves[len(r.saves)-1] {
		all[KeyOf(o)] = o
	}
	r.mu.Unlock()
	for k, o := range changes {
		if o == nil {
			delete(all, k)
		} else {
			all[k] = o
		}
	}
	err := r.save(all)
	if err == nil {
		r.mu.Lock()
		r.appends++
		r.mu.Unlock()
	}
	return err
}

// Long implements LastGood.
func (r *running) Long() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.long
}

func (r *running) save(all map[Key]Object) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed = r.fail != nil; !r.failed {
		r.saves = append(r.saves, slices.Collect(maps.Values(all)))
	}
	return r.fail
}

func (r *running) saved() [][]Object {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.saves)
}

// replaced is how many saves were of all objects.
func (r *running) replaced() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.saves) - r.appends
}

func (r *running) failSaves(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *running) lastSaved() []Object {
	if s := r.saved(); len(s) > 0 {
		return s[len(s)-1]
	}
	return nil
}

func simple(t *testing.T, name, ip string) Object {
	return serviceOf(t, name, "{clusterIP: "+ip+", ports: [{port: 80}]}")
}

// Forwarding starts from the snapshot, before any source, and losing the source
// changes nothing (case 55).
func TestControllerForwardsFromItsSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t, simple(t, "web", "10.96.0.1"), podOf(t, []string{"mine", "here", "10.244.0.2", "app=web"}))
		synctest.Wait()
		if !c.dp.has("web") {
			t.Error("the snapshot's service is not programmed")
		}
		if len(c.List(KindPod)) != 0 {
			t.Error("this node's own pod came from the snapshot")
		}
		select {
		case <-c.Synced():
			t.Error("synced without a source")
		default:
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !c.dp.has("web") || len(c.saved()) != 0 {
			t.Error("an hour without a source changed something")
		}

		c.Reset([]Object{simple(t, "web", "10.96.0.1"), simple(t, "new", "10.96.0.2")})
		synctest.Wait()
		<-c.Synced()
		c.Reachable(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		if !c.dp.has("web") || !c.dp.has("new") {
			t.Error("losing the source changed something")
		}
		c.stop()
	})
}

// An empty list does not wipe the dataplane, nor the snapshot, until its grace is
// over (case 58).
func TestControllerDoesNotBelieveAnEmptyListAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t)
		c.Reset([]Object{simple(t, "web", "10.96.0.1"), simple(t, "db", "10.96.0.2")})
		time.Sleep(2 * saveInterval)
		synctest.Wait()
		if len(c.lastSaved()) != 2 {
			t.Fatalf("saved %v, want both services", c.lastSaved())
		}
		c.Reset(nil)
		time.Sleep(defaultGrace - time.Second)
		synctest.Wait()
		if !c.dp.has("web") || len(c.lastSaved()) != 2 {
			t.Errorf("an empty list took away services or the snapshot at once")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if c.dp.has("web") || len(c.lastSaved()) != 0 {
			t.Errorf("an empty list is not believed after its grace")
		}
		c.stop()
	})
}

// Many changes are few saves; a failed save is made good; the last comes at the end.
func TestControllerSavesNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t)
		c.Reset(nil)
		synctest.Wait()
		for i := range 100 {
			c.Update([]Object{simple(t, "web", "10.96.0."+string(rune('1'+i%9)))}, nil)
			time.Sleep(saveInterval / 20)
		}
		synctest.Wait()
		if n := len(c.saved()); n < 4 || n > 7 {
			t.Errorf("%d saves in five intervals", n)
		}
		if n := c.replaced(); n != 1 {
			t.Errorf("%d saves were of all objects, want the first alone", n)
		}
		c.mu.Lock()
		c.long = true
		c.mu.Unlock()
		c.Update([]Object{simple(t, "web", "10.96.0.19")}, nil)
		time.Sleep(2 * saveInterval)
		synctest.Wait()
		if n := c.replaced(); n != 2 {
			t.Errorf("%d saves were of all objects, want another as the journal has grown", n)
		}
		c.failSaves(errors.New("disk full"))
		c.Update([]Object{simple(t, "db", "10.96.0.20")}, nil)
		time.Sleep(2 * saveInterval)
		synctest.Wait()
		c.failSaves(nil)
		c.Update([]Object{simple(t, "last", "10.96.0.21")}, nil)
		c.stop()
		if n := len(c.lastSaved()); n != 3 {
			t.Errorf("%d objects saved at the end, want 3", n)
		}
	})
}

// A dataplane that refuses is asked again until it takes the change.
func TestControllerRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t)
		c.dp.failing = func(ch Change) bool { return ch.Service.Name == "web" }
		c.Reset([]Object{simple(t, "web", "10.96.0.1"), simple(t, "db", "10.96.0.2")})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if c.dp.has("web") || !c.dp.has("db") {
			t.Error("the change that fails keeps others from being made")
		}
		select {
		case <-c.Synced():
			t.Error("synced although a change is missing")
		default:
		}
		c.dp.mu.Lock()
		c.dp.failing = nil
		n := len(c.dp.calls)
		c.dp.mu.Unlock()
		if n > 12 {
			t.Errorf("%d calls in ten seconds: no backoff", n)
		}
		time.Sleep(defaultBackoffMax)
		synctest.Wait()
		if !c.dp.has("web") {
			t.Error("the change was not made in the end")
		}
		<-c.Synced()
		c.stop()
	})
}

// The grace of a lease ends by itself, without another event.
func TestControllerEndsLeaseGraces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := runController(t)
		node := nodeOf(t, []string{"a", "192.0.2.2", "10.244.1.0/24"})
		pod := podOf(t, []string{"p", "a", "10.244.1.2", "app=web"})
		svc := serviceOf(t, "web", "{selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80}]}")
		c.Reset([]Object{node, pod, svc, lease("a")})
		c.Reset([]Object{node, pod, svc}) // a store that came back without leases
		ready := func() bool {
			c.dp.mu.Lock()
			defer c.dp.mu.Unlock()
			s := c.dp.services[ServiceKey{Namespace: "default", Name: "web"}]
			return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Cluster })
		}
		time.Sleep(LeaseGrace - time.Second)
		synctest.Wait()
		if !ready() {
			t.Error("a lease that is missing from a list is not given its grace")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if ready() {
			t.Error("the endpoint stays ready after the grace")
		}
		c.stop()
	})
}
