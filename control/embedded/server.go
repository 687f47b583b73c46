// Package embedded runs the cluster's store where there is no other: etcd's own
// server library, one member, in a child process of the same binary.
//
// A process of its own, so that the store neither dies nor stalls with the
// dataplane: a daemon that is killed finds its store running, and a store that
// waits for a disk holds up no packet. Serve is that process; a Supervisor, in the
// daemon, starts it, finds it again, and restarts it. Nothing here knows what the
// store holds.
//
// This node reaches the store through a unix socket in its directory, which is
// closed to other users. Further nodes need a TCP port, and off loopback that
// takes TLS and client certificates, as whoever can write to the store owns every
// node's network.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Config says what the store process serves. Dir is required.
type Config struct {
	Dir          string // holds everything: data, socket, log; made with mode 0700
	ListenClient string // URL for further nodes, http or https; empty: none
	CA           string // PEM file of the authority that signs clients' certificates
	Cert, Key    string // PEM files of the store's certificate
	Insecure     bool   // ListenClient may be off loopback without TLS
	Confine      string // how strictly the process gives up rights (package confine); empty: its default
}

// Args is the command line that ParseArgs reads.
func (c *Config) Args() []string {
	var args []string
	for _, f := range [][2]string{
		{"store-dir", c.Dir}, {"listen-client", c.ListenClient},
		{"store-ca", c.CA}, {"store-cert", c.Cert}, {"store-key", c.Key}, {"confine", c.Confine},
	} {
		if f[1] != "" {
			args = append(args, "--"+f[0]+"="+f[1])
		}
	}
	if c.Insecure {
		args = append(args, "--insecure")
	}
	return args
}

// AddFlags adds the flags of `vswitch store`.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.Dir, "store-dir", "", "`DIR` of the store's data, socket and log")
	fs.StringVar(&c.ListenClient, "listen-client", "", "`URL` at which further nodes reach the store (default: none)")
	fs.StringVar(&c.CA, "store-ca", "", "PEM `FILE` of the authority that signs clients' certificates")
	fs.StringVar(&c.Cert, "store-cert", "", "PEM `FILE` of the store's certificate")
	fs.StringVar(&c.Key, "store-key", "", "PEM `FILE` with its key")
	fs.StringVar(&c.Confine, "confine", "", "`MODE` of giving up rights")
	fs.BoolVar(&c.Insecure, "insecure", false, "let --listen-client be off loopback without TLS")
}

// SocketPath is the unix socket of a store in dir.
func SocketPath(dir string) string { return filepath.Join(dir, "store.sock") }

// ClientURL is where this node reaches a store in dir.
func ClientURL(dir string) string { return "unix://" + SocketPath(dir) }

// maxSocketPath is what fits sun_path beside its closing zero (unix(7)).
const maxSocketPath = 107

// Validate checks the configuration. Errors name the flag, its value and what
// would be right.
func (c *Config) Validate() error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("--store-dir %q: want an absolute path", c.Dir)
	}
	if p := SocketPath(c.Dir); len(p) > maxSocketPath {
		return fmt.Errorf("--store-dir %s: its socket's path has %d bytes; want a shorter one, %d at most", c.Dir, len(p), maxSocketPath)
	}
	_, err := c.listenURL()
	return err
}

// listenURL reads ListenClient; nil if there is none.
func (c *Config) listenURL() (*url.URL, error) {
	if c.ListenClient == "" {
		return nil, nil
	}
	fail := func(format string, args ...any) (*url.URL, error) {
		return nil, fmt.Errorf("--listen-client %s: "+format, append([]any{c.ListenClient}, args...)...)
	}
	u, err := url.Parse(c.ListenClient)
	if err != nil || u.Path != "" {
		return fail("want http://ADDRESS:PORT or https://ADDRESS:PORT")
	}
	at, err := netip.ParseAddrPort(u.Host)
	if err != nil {
		return fail("%q is not an address and port of this host", u.Host)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return fail("scheme %q; want http or https", u.Scheme)
	case u.Scheme == "https" && (c.Cert == "" || c.Key == ""):
		return fail("https needs a certificate; want --store-cert FILE and --store-key FILE")
	case at.Addr().IsLoopback() || c.Insecure:
	case u.Scheme == "http":
		return fail("clear text off loopback: whoever reaches it owns the cluster; want https:// with --store-ca, --store-cert and --store-key, or --insecure on a network you trust")
	case c.CA == "":
		return fail("without --store-ca every client is let in; want the authority that signs the nodes' certificates")
	}
	return u, nil
}

// tryListen sees whether ListenClient can be listened on. A store of this directory
// that runs already may hold the port, and one that just starts is to have it.
func (c *Config) tryListen() error {
	u, err := c.listenURL()
	if err != nil || u == nil {
		return err
	}
	args, runs := running(c.Dir)
	if runs && slices.Equal(args, c.Args()) {
		return nil
	}
	l, err := net.Listen("tcp", u.Host)
	switch {
	case err == nil:
		return l.Close()
	case errors.Is(err, unix.EADDRINUSE) && runs:
		return nil
	}
	return fmt.Errorf("--listen-client %s: %w; want an address of this host and a port that is free", c.ListenClient, err)
}

// Timing of the one member: with nobody to agree with, elections can be quick, and
// a start is ready in a fraction of a second rather than in one.
const (
	tickMillis     = 20
	electionMillis = 200
)

// clientPing is how long a client may be silent before it is asked whether it is
// there, and how long it may take to answer.
const clientPing = 5 * time.Second

// quotaBytes is how large the store may grow. An object is about a kilobyte.
const quotaBytes = 4 << 30

// What one request may be, for files that are applied as one or not at all: operations of
// a transaction, and bytes. etcd advises against more than 10 MiB (embed.Config).
const (
	MaxTxnOps       = 10_100
	MaxRequestBytes = 10 << 20
)

// Serve runs the store until ctx ends. Its log, warnings and worse, goes to w, which is
// kept from growing for ever where it is the log in c.Dir. It refuses a directory another
// store serves.
func Serve(ctx context.Context, c Config, w io.Writer) error {
	if err := c.Validate(); err != nil {
		return err
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := writeSelf(&c); err != nil {
		return err
	}
	ec, err := c.etcd(ctx, &boundedLog{to: w, path: logPath(c.Dir), most: logBytes})
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer e.Close()
	if err := os.Chmod(SocketPath(c.Dir), 0o600); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.Err():
		return fmt.Errorf("store: %w", err)
	case <-e.Server.StopNotify():
		return errors.New("store: the server stopped by itself; see its log")
	}
}

// etcd is the configuration of etcd's server, which ends its streams when ctx does.
func (c *Config) etcd(ctx context.Context, log io.Writer) (*embed.Config, error) {
	ec := embed.NewConfig()
	ec.Name = "vswitch"
	ec.Dir = filepath.Join(c.Dir, "data")
	ec.TickMs, ec.ElectionMs = tickMillis, electionMillis
	ec.QuotaBackendBytes = quotaBytes
	ec.MaxTxnOps, ec.MaxRequestBytes = MaxTxnOps, MaxRequestBytes
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	ec.LogLevel = "warn"
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(log), zap.WarnLevel)))

	// A node that vanished, or goes on from another address, leaves connections that the
	// store would wait for when it stops.
	ec.GRPCKeepAliveInterval, ec.GRPCKeepAliveTimeout = clientPing, clientPing
	ec.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainStreamInterceptor(endStreams(ctx))}

	// The only member has no peer to listen to. It must have an address all the same.
	nobody := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = nil, []url.URL{nobody}
	ec.InitialCluster = ec.Name + "=" + nobody.String()

	ec.ListenClientUrls = []url.URL{{Scheme: "unix", Path: SocketPath(c.Dir)}}
	listen, err := c.listenURL()
	if err != nil {
		return nil, err
	}
	if listen != nil {
		ec.ListenClientUrls = append(ec.ListenClientUrls, *listen)
		if listen.Scheme == "https" {
			ec.ClientTLSInfo = transport.TLSInfo{CertFile: c.Cert, KeyFile: c.Key, TrustedCAFile: c.CA, ClientCertAuth: c.CA != ""}
		}
	}
	ec.AdvertiseClientUrls = ec.ListenClientUrls
	return ec, nil
}

// lockDir makes the directory and takes it for this process alone.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--store-dir: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--store-dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--store-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("--store-dir %s: another store serves it: %w", dir, err)
	}
	return f, nil
}

// answers reports whether somebody listens at the socket.
func answers(dir string) bool {
	c, err := net.DialTimeout("unix", SocketPath(dir), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
