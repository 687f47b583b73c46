package etcd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vswitch/control"
	"vswitch/control/embedded"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.file, _, a.key = a.issue(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	block, _ := pem.Decode(a.read(a.file))
	var err error
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) read(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// issue writes a certificate and its key, signed by the authority or, before there
// is one, by itself.
func (a *authority) issue(name string, c *x509.Certificate, parent *x509.Certificate) (certFile, keyFile string, key *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	signer := a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(a.dir, name+".crt"), filepath.Join(a.dir, name+".key")
	for path, b := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return certFile, keyFile, key
}

func (a *authority) leaf(name string) (cert, key string) {
	cert, key, _ = a.issue(name, &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert)
	return cert, key
}

// A further node reaches the embedded store over TLS with a certificate of its
// authority, and with nothing less.
func TestFurtherNodesNeedACertificate(t *testing.T) {
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	serverCert, serverKey := ca.leaf("server")
	nodeCert, nodeKey := ca.leaf("node")
	strangerCert, strangerKey := other.leaf("stranger")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + l.Addr().String()
	l.Close()
	dir, err := os.MkdirTemp("", "tls")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- embedded.Serve(ctx, embedded.Config{
			Dir: dir, ListenClient: url, CA: ca.file, Cert: serverCert, Key: serverKey,
		}, io.Discard)
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	list := func(url string, f TLSFiles) error {
		st, err := New(Config{Endpoints: []string{url}, Node: "a", TLS: f, Timeout: time.Second})
		if err != nil {
			return err
		}
		defer st.Close()
		_, err = st.List(t.Context(), control.KindNode)
		return err
	}
	for attempt := 0; ; attempt++ { // until it serves
		if err = list(url, TLSFiles{CA: ca.file, Cert: nodeCert, Key: nodeKey}); err == nil || attempt > 10 {
			break
		}
	}
	if err != nil {
		t.Fatalf("with a certificate of its authority: %v", err)
	}
	// In TLS 1.3 a client learns after its handshake that its certificate was
	// refused, and may first notice that it is no longer listened to.
	for _, f := range []TLSFiles{{CA: ca.file}, {CA: ca.file, Cert: strangerCert, Key: strangerKey}} {
		if err := list(url, f); !errors.Is(err, control.ErrUnavailable) || !strings.Contains(err.Error(), url) {
			t.Errorf("with %+v: %v, want it refused by its URL", f, err)
		}
	}
	wantError(t, list(url, TLSFiles{CA: other.file, Cert: nodeCert, Key: nodeKey}), url, "certificate signed by unknown authority")

	wantError(t, list(url, TLSFiles{CA: filepath.Join(dir, "none")}), "--store-ca", "no such file")
	wantError(t, list(url, TLSFiles{CA: nodeKey}), "--store-ca", "no certificate in it")
	wantError(t, list(url, TLSFiles{Cert: nodeCert}), "--store-cert and --store-key go together")
	wantError(t, list(url, TLSFiles{Cert: nodeCert, Key: strangerKey}), "--store-cert "+nodeCert, "private key")
}
