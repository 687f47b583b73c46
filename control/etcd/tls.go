package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles are PEM files: the authority that signed the store's certificate, and
// this node's own certificate and key. Without CA the system's authorities count;
// without Cert and Key the node shows no certificate.
type TLSFiles struct {
	CA, Cert, Key string
}

// Client reads the files. Errors name the flag and the file.
func (f TLSFiles) Client() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, fmt.Errorf("--store-ca %s: %w; want a PEM file of the authority's certificate", f.CA, err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--store-ca %s: no certificate in it; want a PEM file of the authority's certificate", f.CA)
		}
	}
	switch {
	case f.Cert == "" && f.Key == "":
		return c, nil
	case f.Cert == "" || f.Key == "":
		return nil, errors.New("--store-cert and --store-key go together; want both or none")
	}
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("--store-cert %s, --store-key %s: %w; want PEM files of a certificate and its key", f.Cert, f.Key, err)
	}
	c.Certificates = []tls.Certificate{cert}
	return c, nil
}
