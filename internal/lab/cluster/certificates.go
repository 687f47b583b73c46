package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// validity of every certificate: the longest test and then some.
const validity = 48 * time.Hour

// authority is the one that everybody in the cluster trusts, for servers and for
// clients alike.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     crypto.Signer
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	template := newCertificate(pkix.Name{CommonName: "lab"})
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return &authority{cert: cert, certPEM: pemOf("CERTIFICATE", der), key: key}, nil
}

func newCertificate(name pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: name, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity)}
}

// issue makes a key and a certificate, in PEM: of a server where it has hosts,
// addresses or names, otherwise of a client.
func (a *authority) issue(name pkix.Name, hosts []string) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: %w", err)
	}
	template := newCertificate(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, h := range hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: certificate of %s: %w", name.CommonName, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster: %w", err)
	}
	return pemOf("CERTIFICATE", der), pemOf("EC PRIVATE KEY", keyDER), nil
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// writeCertificates writes what the control plane's processes read: ca.crt,
// apiserver.crt and .key, and the key by which service accounts' tokens are signed.
func (c *Cluster) writeCertificates() error {
	// The service's address is the first of its prefix, and pods call it by name.
	hosts := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "127.0.0.1",
	}
	for _, p := range ServiceCIDRs {
		hosts = append(hosts, p.Addr().Next().String())
	}
	if a := c.Control.Underlay4; a.IsValid() {
		hosts = append(hosts, a.String())
	}
	if a := c.Control.Underlay6; a.IsValid() {
		hosts = append(hosts, a.String())
	}
	cert, key, err := c.ca.issue(pkix.Name{CommonName: "kube-apiserver"}, hosts)
	if err != nil {
		return err
	}
	_, tokenKey, err := c.ca.issue(pkix.Name{CommonName: "service accounts"}, nil)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.crt": c.ca.certPEM, "apiserver.crt": cert, "apiserver.key": key, "tokens.key": tokenKey,
	} {
		if err := os.WriteFile(c.path("pki", name), content, 0o600); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	return nil
}
