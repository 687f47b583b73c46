package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vswitch/internal/rootless/copyup"
)

// do makes the machine as the command is to see it.
func (s *Setup) do() error {
	if err := makeMountsOwn(); err != nil {
		return err
	}
	if err := openToAll(); err != nil {
		return err
	}
	if s.ResolvConf != "" {
		if err := bindResolvConf(s.ResolvConf); err != nil {
			return err
		}
	}
	// What is to be bound may lie where another file system is about to be.
	sources := make([]copyup.Tree, len(s.Binds))
	for i, b := range s.Binds {
		tree, err := copyup.Take(b.Source)
		if err != nil {
			return fmt.Errorf("--bind: %w", err)
		}
		defer tree.Close()
		sources[i] = tree
	}
	if err := s.makeWritable(); err != nil {
		return err
	}
	for i, b := range s.Binds {
		if err := b.mount(sources[i]); err != nil {
			return fmt.Errorf("--bind %s:%s: %w", b.Source, b.Target, err)
		}
	}
	return nil
}

// makeWritable gives the command directories that it can write, and an engine more.
func (s *Setup) makeWritable() error {
	if !s.Engine {
		return copyup.Dirs(s.CopyUp)
	}
	if err := s.mountEngine(); err != nil {
		return err
	}
	if err := copyup.Dirs(slices.Concat(s.CopyUp, engineDirs)); err != nil {
		return err
	}
	hideSystemd()
	return errors.Join(s.tellPodman(), ownRuntimeDir())
}

// Bind shows a file or directory of the machine, Source, at Target.
type Bind struct {
	Source string `json:"source"`
	Target string `json:"target"`
}

// ParseBind reads SOURCE:DIR.
func ParseBind(text string) (Bind, error) {
	source, target, ok := strings.Cut(text, ":")
	if !ok || !filepath.IsAbs(source) || !filepath.IsAbs(target) {
		return Bind{}, errors.New("want SOURCE:DIR")
	}
	return Bind{source, target}, nil
}

func (b Bind) mount(source copyup.Tree) error {
	if _, err := os.Stat(b.Target); errors.Is(err, fs.ErrNotExist) {
		if err := makeTarget(b.Target, source.IsDir()); err != nil {
			return err
		}
	}
	return source.Put(b.Target)
}

func makeTarget(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}
