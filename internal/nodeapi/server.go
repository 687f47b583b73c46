// Package nodeapi serves the API of a node's daemon (control/api/v1) on a unix
// socket: to the CNI plugin and the command line, of root or of the daemon's own
// user, and to nobody else.
//
// It translates: requests into the calls of narrow interfaces, their errors into
// gRPC status codes. What an attachment or an object is, others decide.
package nodeapi

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vswitch/control"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/attach"
	"vswitch/internal/fdpass"
)

// Attachments is what AddPod and its like are about; *attach.Manager is one.
type Attachments interface {
	Add(attach.Request) (attach.Attachment, error)
	Delete(attach.Key) error
	Get(attach.Key) (attach.Attachment, error)
	List() []attach.Attachment
	Lost() ([]attach.Attachment, error)
	GC(network string, valid []attach.Key) ([]attach.Attachment, []attach.Failure)
}

// Objects is the cluster's store, for Apply and Delete.
type Objects interface {
	Apply(ctx context.Context, objs []control.Object) ([]control.Object, error)
	Delete(ctx context.Context, kind control.Kind, namespace, name string) error
	List(ctx context.Context, kind control.Kind) ([]control.Object, error)
}

// Readiness is the answer to Status.
type Readiness struct {
	Reason  string // empty: ready
	Limited bool   // pods that exist may lack connectivity as well
}

// Config is what a server answers from. All but Log is required.
type Config struct {
	Socket      string
	Node        string
	Version     string
	Attachments Attachments
	Objects     Objects
	// Ready says whether an AddPod made now would succeed.
	Ready func() Readiness
	// Rows lists what `vswitch get KIND` shows, one value that marshals to a JSON
	// object a row, while they are asked for. An *UnknownKindError is the caller's mistake.
	Rows func(ctx context.Context, kind string) (iter.Seq[any], error)
	// Trace says what would become of a packet.
	Trace func(TraceQuery) (*apiv1.TraceReply, error)
	// Captures is what Capture is about.
	Captures Captures
	// Gateways are those of each family, and the MAC of both, as pods see them.
	Gateways   []netip.Addr
	GatewayMAC string
	// DNSAddrs are where pods ask for names, none: nowhere, and DNSDomain that of the
	// cluster's.
	DNSAddrs  []netip.Addr
	DNSDomain string
	// HostRoutes are the ranges that an attached host reaches by the switch.
	HostRoutes []netip.Prefix
	// Upgrade asks for another process in the place of this one; nil: there is nobody
	// to ask.
	Upgrade func() error
	// UpgradeRefused says why what Upgrade asked for came to nothing; empty: it did not,
	// or not yet. It is asked after Upgrade only, and nil where that is.
	UpgradeRefused func() (string, error)
	// Called is told of every call that was answered: its name, such as AddPod, the
	// code of the answer, and how long it took. Nil: nobody asks.
	Called func(method, code string, took time.Duration)
	Log    *slog.Logger
}

// UnknownKindError names the kinds there are.
type UnknownKindError struct {
	Kind string
	Want string
}

func (e *UnknownKindError) Error() string { return fmt.Sprintf("kind %q: want %s", e.Kind, e.Want) }

const (
	// callTimeout bounds a call whose client set no deadline.
	callTimeout = 30 * time.Second
	// maxMessageBytes lets an apply carry what etcd takes in one request many times over.
	maxMessageBytes = 64 << 20
	// stopTimeout is how long Close waits for calls in progress, and for peers
	// that connected and have said nothing yet: gRPC can't be told to drop those.
	stopTimeout = 3 * time.Second
)

// Server is the API on its socket.
type Server struct {
	apiv1.UnimplementedNodeServer
	cfg      Config
	grpc     *grpc.Server
	listener *fdpass.Listener
	done     chan error // of grpc.Serve
	// stopping ends when Close begins: streams have no end of their own.
	stopping context.Context
	stop     context.CancelFunc
	// upgrading: Upgrade has asked for another process.
	upgrading atomic.Bool
}

// Start binds the socket, mode 0600 in a directory made with 0700 if need be,
// and serves until Close. A socket another daemon listens on is refused.
func Start(cfg Config) (*Server, error) {
	if err := MakeSocketDir(cfg.Socket); err != nil {
		return nil, err
	}
	listener, err := fdpass.Bind("unix", cfg.Socket)
	if errors.Is(err, fdpass.ErrInUse) {
		return nil, fmt.Errorf("--socket %s: another daemon serves it; stop that one, or give this one another --socket and --state-dir", cfg.Socket)
	}
	if err != nil {
		return nil, fmt.Errorf("--socket %s: %w", cfg.Socket, err)
	}
	s := &Server{cfg: cfg, listener: listener, done: make(chan error, 1)}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.ChainUnaryInterceptor(s.tellCalled, authorize, s.recoverPanic, boundTime),
		grpc.ChainStreamInterceptor(s.tellStreamCalled, authorizeStream, s.recoverStreamPanic),
		grpc.ConnectionTimeout(stopTimeout),
		grpc.MaxRecvMsgSize(maxMessageBytes), grpc.MaxSendMsgSize(maxMessageBytes),
	)
	apiv1.RegisterNodeServer(s.grpc, s)
	go func() { s.done <- s.grpc.Serve(listener) }()
	return s, nil
}

// MakeSocketDir makes the directory of a socket, closed to other users, if need be.
func MakeSocketDir(socket string) error {
	dir := filepath.Dir(socket)
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("--socket: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--socket: %w", err)
	}
	return nil
}

// InPlace reports why clients don't find the socket; nil: they do.
func (s *Server) InPlace() error { return s.listener.InPlace() }

// Restore puts the socket back in its place (fdpass.Listener.Restore).
func (s *Server) Restore() error { return s.listener.Restore() }

// Close stops listening, lets calls in progress end for a moment, and removes
// the socket. It is idempotent.
func (s *Server) Close() error {
	s.stop()
	timer := time.AfterFunc(stopTimeout, s.grpc.Stop)
	defer timer.Stop()
	s.grpc.GracefulStop()
	err, ok := <-s.done
	if ok {
		close(s.done)
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// boundTime gives a call a deadline where its client gave none.
func boundTime(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	return next(ctx, req)
}

// tellCalled tells Config.Called. Names come from the server's own list: a caller can't
// make up more.
func (s *Server) tellCalled(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if s.cfg.Called == nil {
		return next(ctx, req)
	}
	began := time.Now()
	reply, err := next(ctx, req)
	s.cfg.Called(path.Base(info.FullMethod), status.Code(err).String(), time.Since(began))
	return reply, err
}

// tellStreamCalled is tellCalled for calls that answer in a stream.
func (s *Server) tellStreamCalled(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if s.cfg.Called == nil {
		return next(srv, stream)
	}
	began := time.Now()
	err := next(srv, stream)
	s.cfg.Called(path.Base(info.FullMethod), status.Code(err).String(), time.Since(began))
	return err
}

// recoverPanic keeps a bug in one call from taking the node's forwarding along.
func (s *Server) recoverPanic(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
	defer s.logPanic(info.FullMethod, &err)
	return next(ctx, req)
}

// recoverStreamPanic is recoverPanic for calls that answer in a stream.
func (s *Server) recoverStreamPanic(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.logPanic(info.FullMethod, &err)
	return next(srv, stream)
}

// logPanic, deferred, makes a panic the call's error.
func (s *Server) logPanic(call string, err *error) {
	if r := recover(); r != nil {
		s.cfg.Log.Error("panic in an API call", "call", call, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
		*err = internal(fmt.Errorf("panic: %v", r))
	}
}

// Version implements apiv1.NodeServer.
func (s *Server) Version(context.Context, *apiv1.VersionRequest) (*apiv1.VersionReply, error) {
	r := &apiv1.VersionReply{
		Version: s.cfg.Version, GoVersion: runtime.Version(), Node: s.cfg.Node, Pid: uint32(os.Getpid()),
	}
	if s.upgrading.Load() {
		var err error
		// A keeper of an older version does not know: then nobody is told.
		if r.UpgradeRefused, err = s.cfg.UpgradeRefused(); err != nil {
			s.cfg.Log.Debug("whether the upgrade is refused is not known", "err", err)
		}
	}
	return r, nil
}

// Upgrade implements apiv1.NodeServer.
func (s *Server) Upgrade(context.Context, *apiv1.UpgradeRequest) (*apiv1.UpgradeReply, error) {
	if s.cfg.Upgrade == nil {
		return nil, status.Error(codes.FailedPrecondition, "the daemon runs without a keeper: stop it and start it again")
	}
	if err := s.cfg.Upgrade(); err != nil {
		return nil, internal(err)
	}
	s.upgrading.Store(true)
	return &apiv1.UpgradeReply{Pid: uint32(os.Getpid())}, nil
}

// Status implements apiv1.NodeServer.
func (s *Server) Status(context.Context, *apiv1.StatusRequest) (*apiv1.StatusReply, error) {
	r := s.cfg.Ready()
	return &apiv1.StatusReply{Ready: r.Reason == "", Reason: r.Reason, LimitedConnectivity: r.Limited}, nil
}
