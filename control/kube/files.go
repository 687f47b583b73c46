package kube

import (
	"fmt"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
)

// Files are those by which the API server is asked: they are read again when somebody
// puts others in their place. A program that a kubeconfig has run for credentials is
// not among them, and can't be run by a process that has given up running any.
func Files(kubeconfig string) ([]string, error) {
	if kubeconfig == "" {
		return []string{filepath.Join(serviceAccount, "token"), filepath.Join(serviceAccount, "ca.crt")}, nil
	}
	c, err := clientcmd.LoadFromFile(kubeconfig)
	if err == nil {
		err = clientcmd.ResolveLocalPaths(c)
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig %s: %w", kubeconfig, err)
	}
	files := []string{kubeconfig}
	for _, cluster := range c.Clusters {
		files = append(files, cluster.CertificateAuthority)
	}
	for _, user := range c.AuthInfos {
		files = append(files, user.ClientCertificate, user.ClientKey, user.TokenFile)
	}
	return files, nil
}
