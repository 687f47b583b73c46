package main

import (
	"log/slog"
	"path/filepath"

	"vswitch/control/embedded"
	"vswitch/control/kube"
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
	read, err := credentials(&cfg.Store)
	if err != nil {
		return err
	}
	_, err = confine.Apply(confine.Dataplane(append(ownFiles(cfg), confine.Replaceable(read...)...)...), cfg.Confine)
	return err
}

// credentials are the files by which the dataplane asks its store. They are read again
// when they are replaced.
func credentials(s *config.Store) ([]string, error) {
	if s.Kubernetes {
		return kube.Files(s.Kubeconfig)
	}
	return []string{s.CA, s.Cert, s.Key}, nil
}

func confineStore(c *embedded.Config) error {
	files := append(confine.Replaceable(c.CA, c.Cert, c.Key), confine.Files{Path: c.Dir, Access: confine.Read | confine.Write})
	_, err := confine.Apply(confine.Store(files...), confine.Mode(c.Confine))
	return err
}

// ownFiles are the directories that are the daemon's own.
func ownFiles(cfg *config.Config) []confine.Files {
	return []confine.Files{
		{Path: cfg.StateDir, Access: confine.Read | confine.Write},
		{Path: filepath.Dir(cfg.SocketPath), Access: confine.Read | confine.Write},
		{Path: cfg.RuntimeDir, Access: confine.Read | confine.Write},
	}
}
