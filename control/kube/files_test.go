package kube

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestTheFilesOfAKubeconfig(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config")
	text := `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://192.0.2.1:6443", certificate-authority: ca.crt}}]
users: [{name: u, user: {client-certificate: /etc/node/now.pem, tokenFile: token}}]
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Files(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{path, filepath.Join(dir, "ca.crt"), "/etc/node/now.pem", filepath.Join(dir, "token")} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is not among %q", want, got)
		}
	}
	if _, err := Files(filepath.Join(dir, "none")); err == nil {
		t.Error("a kubeconfig that isn't there: no error")
	}
}
