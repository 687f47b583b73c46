package main

import (
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"strings"

	"vswitch/control/embedded"
	"vswitch/internal/config"
	"vswitch/internal/confine"
	"vswitch/internal/node"
)

// What each process of the daemon keeps of its rights (docs/security.md).

// confineKeeper bounds this process and all that it starts. What the kernel does not
// have is said here, once for all of them.
func confineKeeper(cfg *config.Config, program string, log *slog.Logger) error {
	if err := node.MakeDirs(cfg); err != nil {
		return err
	}
	lacks, err := confine.Apply(confine.Keeper(program, ownFiles(cfg)...), cfg.Confine)
	for _, l := range lacks {
		log.Warn("the daemon is less confined than it could be", "err", l)
	}
	if cfg.Confine == confine.Off {
		log.Warn("the daemon gives up no rights: --confine is off")
	}
	return err
}

func confineDataplane(cfg *config.Config) error {
	files := append(ownFiles(cfg), tlsFiles(cfg.Store.CA, cfg.Store.Cert, cfg.Store.Key)...)
	for _, u := range cfg.Store.URLs {
		if strings.HasPrefix(u, "https:") && cfg.Store.CA == "" {
			_, _ = x509.SystemCertPool() // the system's authorities, read while they may be
		}
	}
	_, err := confine.Apply(confine.Dataplane(files...), cfg.Confine)
	return err
}

func confineStore(c *embedded.Config) error {
	files := append(tlsFiles(c.CA, c.Cert, c.Key), confine.Files{Path: c.Dir, Access: confine.Read | confine.Write})
	_, err := confine.Apply(confine.Store(files...), confine.Mode(c.Confine))
	return err
}

// ownFiles are the directories that are the daemon's own.
func ownFiles(cfg *config.Config) []confine.Files {
	return []confine.Files{
		{Path: cfg.StateDir, Access: confine.Read | confine.Write},
		{Path: filepath.Dir(cfg.SocketPath), Access: confine.Read | confine.Write},
	}
}

// tlsFiles are read again when they are replaced.
func tlsFiles(paths ...string) []confine.Files {
	var files []confine.Files
	for _, p := range paths {
		if p != "" {
			files = append(files, confine.File(p))
		}
	}
	return files
}
