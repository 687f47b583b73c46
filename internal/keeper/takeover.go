package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vswitch/internal/fdpass"
	"vswitch/internal/fdstore"
	"vswitch/internal/upkeep"
)

// A take-over: a keeper that starts comes for all that another one holds, and both
// run until the new one's dataplane forwards. The old one listens on Config.Socket;
// one connection is one take-over, a packet asks, one answers:
//
//	new                                 old
//	 |── hello, version ──────────────▶ |  refuses a version it doesn't speak
//	 |   (starts its child, which waits) |
//	 |── take ────────────────────────▶ |  tells its child to hand over
//	 |◀──────────────── the child is gone|
//	 |── names, get, get, ... ────────▶ |  keeps what it gives
//	 |   (its child begins, is ready)    |
//	 |── taken ───────────────────────▶ |  lets go of all, and of the socket
//
// A connection that ends before taken says that the new one is of no use: the old one
// starts a child in the place of the one that handed over, and goes on.

// takeOverVersion changes when a keeper of before could not give what is asked of it,
// or what it gives would mean something else.
const takeOverVersion = "1"

const (
	opHello op = "hello"
	opTake  op = "take"
	opTaken op = "taken"
)

const (
	// takeOverTimeout is how long a new dataplane may take from begin to ready, while
	// nobody forwards. It takes some 50 ms.
	takeOverTimeout = 10 * time.Second
	// exchangeTimeout bounds one exchange, but for take, in which the old child ends and
	// may drain before.
	exchangeTimeout = handOverTimeout + 3*time.Second
	// bindPatience: a keeper killed a moment ago may listen still, until the kernel has
	// closed its files.
	bindPatience = time.Second
)

// ErrRuns: another keeper listens on Config.Socket.
var ErrRuns = errors.New("another vswitch runs on it; stop that one, take its place with --take-over, or give this one another --state-dir and --socket")

// claim is a take-over as the keeper sees it whose place is taken.
type claim struct {
	conn    *net.UnixConn
	peer    fdpass.Cred
	stopped chan struct{} // closed by the keeper when its child is gone
	decided chan struct{} // closed when taken is known
	taken   bool          // valid once decided is closed
	freed   chan struct{} // closed by the keeper when it holds nothing
}

// claims listens for keepers that come to take over.
type claims struct {
	listener *fdpass.Listener
	drain    time.Duration // how long its child may
	log      *slog.Logger
	store    fdstore.Store
	came     chan *claim // asked to take
	ended    context.Context
	end      context.CancelFunc
	served   sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.UnixConn]struct{} // guarded by mu
}

// listen lets others take over at path; empty: nobody can, and there is nothing to close.
func listen(path string, s fdstore.Store, drain time.Duration, log *slog.Logger) (*claims, error) {
	if path == "" {
		return nil, nil
	}
	var l *fdpass.Listener
	for began := time.Now(); ; time.Sleep(backoffMin) {
		var err error
		if l, err = fdpass.Bind("unixpacket", path); err == nil {
			break
		}
		switch {
		case !errors.Is(err, fdpass.ErrInUse):
			return nil, fmt.Errorf("keeper: %w", err)
		case time.Since(began) > bindPatience:
			return nil, fmt.Errorf("%s: %w", path, ErrRuns)
		}
	}
	c := &claims{listener: l, drain: drain, log: log, store: s, came: make(chan *claim), conns: map[*net.UnixConn]struct{}{}}
	c.ended, c.end = context.WithCancel(context.Background())
	c.served.Go(c.accept)
	c.served.Go(func() { _ = upkeep.New(log, c.place()).Run(c.ended) }) // it ends with ended alone
	return c, nil
}

// place is where others find the socket, until it is given away.
func (c *claims) place() upkeep.Object {
	return upkeep.Object{Name: "the keeper's socket", Mend: c.listener.Restore, Check: func() error {
		if c.ended.Err() != nil {
			return nil
		}
		return c.listener.InPlace()
	}}
}

func (c *claims) accept() {
	for {
		conn, err := c.listener.AcceptUnix()
		if err != nil {
			if c.ended.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // for want of descriptors, perhaps
			case <-c.ended.Done():
				return
			case <-time.After(backoffMin):
			}
			continue
		}
		c.admit(conn)
	}
}

// admit has a connection served, if there is time for any.
func (c *claims) admit(conn *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended.Err() != nil { // close has ended those that it knew
		conn.Close()
		return
	}
	c.conns[conn] = struct{}{}
	c.served.Go(func() {
		c.serve(conn)
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
		conn.Close()
	})
}

// coming brings each who asked to take.
func (c *claims) coming() <-chan *claim {
	if c == nil {
		return nil
	}
	return c.came
}

// unlist removes the socket for good, so that a successor may listen at its path.
func (c *claims) unlist() {
	c.end()
	c.listener.Close()
}

// close ends every conversation and waits.
func (c *claims) close() {
	if c == nil {
		return
	}
	c.end()
	c.listener.Close()
	c.mu.Lock()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.served.Wait()
}

// serve is one conversation.
func (c *claims) serve(conn *net.UnixConn) {
	peer, err := fdpass.CheckPeer(conn)
	if err != nil {
		_ = write(conn, response{Error: err.Error()}, nil)
		return
	}
	var t *claim // once it asked to take
	greeted := false
	defer func() {
		if t != nil && !t.taken {
			close(t.decided)
		}
	}()
	for {
		var q request
		fds, err := read(conn, &q)
		if err != nil {
			return
		}
		closeAll(fds) // none are asked for
		var r response
		var out []int
		switch {
		case q.Op == opHello && q.Version != takeOverVersion:
			r.Error = fmt.Sprintf("it takes over by version %q, this one hands over by %s: stop this one first", q.Version, takeOverVersion)
		case q.Op == opHello:
			greeted, r.Drain = true, c.drain
		case !greeted:
			r.Error = "want hello first"
		case q.Op == opTake && t == nil:
			t = &claim{conn: conn, peer: peer, stopped: make(chan struct{}), decided: make(chan struct{}), freed: make(chan struct{})}
			select {
			case c.came <- t:
				<-t.stopped
			case <-c.ended.Done():
				t = nil // nobody waits for what is decided
				return
			}
		case t == nil || t.taken:
			r.Error = fmt.Sprintf("%q is not in its turn", q.Op)
		case q.Op == opNames:
			if r.Names, r.More, err = page(c.store, q.Name); err != nil {
				r.Error = err.Error()
			}
		case q.Op == opGet:
			if out, err = c.store.Get(q.Name); err != nil {
				r = response{Error: err.Error(), NotFound: errors.Is(err, fdstore.ErrNotFound)}
			}
		case q.Op == opTaken:
			t.taken = true
			close(t.decided)
			<-t.freed
		default:
			r.Error = fmt.Sprintf("%q is unknown to this keeper: it is of an older version", q.Op)
		}
		err = write(conn, r, out)
		closeAll(out)
		if err != nil {
			return
		}
	}
}

// yield gives all to another keeper. It returns the child that goes on here, if the
// other fails, or nil: this keeper has no more to do.
func (k *keeper) yield(ctx context.Context, t *claim, current *child) *child {
	log := k.cfg.Log.With("to", t.peer.PID)
	log.Info("another vswitch takes over", "pid", current.cmd.Process.Pid)
	if err := current.stop(HandOver, handOverTimeout+k.cfg.Drain); err != nil {
		log.Warn("the dataplane did not end as it should", "err", err)
	}
	close(t.stopped)
	select {
	case <-t.decided:
	case <-ctx.Done(): // the other has all it wants, or will see that this one is gone
		close(t.freed)
		return nil
	}
	if !t.taken {
		log.Error("the take-over has failed: what came ended before it forwarded; this one goes on")
		return k.successor(ctx, current)
	}
	k.claims.unlist()
	k.letGo()
	k.embedded.leave()
	close(t.freed)
	log.Info("all is handed over")
	return nil
}

// letGo forgets all that is held, a service manager's store included: it is the
// other's to keep.
func (k *keeper) letGo() {
	names, err := k.store.Names()
	for _, name := range names {
		err = errors.Join(err, k.store.Remove(name))
	}
	if err != nil {
		k.cfg.Log.Warn("some of what was handed over is held here still", "err", err)
	}
}

// before is a take-over as the keeper sees it that takes the place.
type before struct {
	Client
	drain time.Duration // how long its child may
}

// dialBefore connects to the keeper that listens at path; nil: there is none.
func dialBefore(path string) (*before, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("take over: %w", err)
	}
	b := &before{Client: Client{conn: conn}}
	if _, err := fdpass.CheckPeer(conn); err != nil {
		return nil, errors.Join(fmt.Errorf("take over: %w", err), conn.Close())
	}
	hello, err := b.ask(request{Op: opHello, Version: takeOverVersion})
	b.drain = hello.Drain
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE): // it is at its end
		return nil, conn.Close()
	case err != nil:
		return nil, errors.Join(fmt.Errorf("take over: the vswitch that runs refuses: %w", err), conn.Close())
	}
	return b, nil
}

func (b *before) ask(q request) (response, error) {
	patience := exchangeTimeout
	if q.Op == opTake {
		patience += b.drain
	}
	_ = b.conn.SetDeadline(time.Now().Add(patience))
	r, fds, err := b.Client.ask(q, nil)
	closeAll(fds)
	return r, err
}

// take has the other's dataplane end, and puts all that it kept into s.
func (b *before) take(s fdstore.Store) error {
	if _, err := b.ask(request{Op: opTake}); err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	names, err := b.Names()
	if err != nil {
		return fmt.Errorf("take over: %w", err)
	}
	for _, name := range names {
		fds, err := b.Get(name)
		if err != nil {
			return fmt.Errorf("take over: %w", err)
		}
		err = s.Put(name, fds)
		closeAll(fds)
		if err != nil {
			return fmt.Errorf("take over: %w", err)
		}
	}
	return nil
}

// takeOver brings the first child to where it forwards in the place of another
// keeper's. An error, or ctx's end, leaves the place to the other.
func (k *keeper) takeOver(ctx context.Context, b *before, current *child) error {
	defer b.Close() // last: the other goes on only when the child is gone
	select {
	case <-current.waiting:
	case <-current.done:
		return unready(current)
	case <-ctx.Done():
		return current.stop(unix.SIGKILL, stopTimeout)
	}
	if err := b.take(k.store); err != nil {
		return errors.Join(err, current.stop(unix.SIGKILL, stopTimeout))
	}
	close(current.begin)
	select {
	case <-current.ready:
	case <-current.done:
		return unready(current)
	case <-time.After(takeOverTimeout):
		return errors.Join(fmt.Errorf("take over: the dataplane did not forward within %v", takeOverTimeout), current.stop(unix.SIGKILL, stopTimeout))
	case <-ctx.Done():
		return current.stop(unix.SIGKILL, stopTimeout)
	}
	// From here on this one has the place, whatever becomes of the other.
	if _, err := b.ask(request{Op: opTaken}); err != nil && !errors.Is(err, io.EOF) {
		k.cfg.Log.Warn("the vswitch whose place this one took does not say that it let go", "err", err)
	}
	return nil
}

// unready is the error of a first child that ended before it was ready.
func unready(c *child) error {
	if state := c.cmd.ProcessState; !state.Exited() {
		return fmt.Errorf("keeper: the dataplane ended before it was ready: %s", state)
	}
	return &ExitError{c.cmd.ProcessState.ExitCode()}
}
