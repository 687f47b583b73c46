package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"vswitch/control"
	"vswitch/control/api"
	apiv1 "vswitch/control/api/v1"
	"vswitch/internal/config"
)

// maxReplyBytes is far more than a reply of frames has.
const maxReplyBytes = 64 << 20

// daemon is how a client command finds the daemon.
type daemon struct{ socket string }

func (d *daemon) addFlag(cmd *cobra.Command) {
	path, _ := api.DefaultSocket() // without one, path says why
	if s, ok := os.LookupEnv(config.EnvName("socket")); ok {
		path = s
	}
	cmd.Flags().StringVar(&d.socket, "socket", path, "`PATH` of the daemon's unix socket")
}

// path is the socket's, absolute.
func (d *daemon) path() (string, error) {
	if d.socket == "" {
		_, err := api.DefaultSocket() // there is none, or an empty one was given
		return "", fmt.Errorf("--socket: %w; want --socket PATH", cmp.Or(err, errors.New("it is empty")))
	}
	path, err := filepath.Abs(d.socket)
	if err != nil {
		return "", fmt.Errorf("--socket %s: %w", d.socket, err)
	}
	return path, nil
}

// call dials the daemon and makes one or more calls. What the API answers comes
// back as its message alone.
func (d *daemon) call(ctx context.Context, f func(*apiv1.Client) error) error {
	socket, err := d.path()
	if err != nil {
		return err
	}
	c, err := apiv1.Dial(ctx, socket)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("--socket %s: no daemon listens there; start vswitch run, or give the --socket that it was given", d.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("--socket %s: permission denied; want to be root or the user the daemon runs as", d.socket)
	case err != nil:
		return err
	}
	defer c.Close()
	return plain(f(c))
}

// plain is an error of the API as a person reads it.
func plain(err error) error {
	if s, ok := status.FromError(err); ok && err != nil {
		return errors.New(s.Message())
	}
	return err
}

func newVersion() *cobra.Command {
	var d daemon
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the daemon", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "vswitch %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			err := d.call(cmd.Context(), func(c *apiv1.Client) error {
				v, err := c.Version(cmd.Context(), &apiv1.VersionRequest{})
				if err == nil {
					fmt.Fprintf(out, "daemon %s %s, node %s, pid %d\n", v.GetVersion(), v.GetGoVersion(), v.GetNode(), v.GetPid())
				}
				return err
			})
			if err != nil {
				fmt.Fprintf(out, "daemon: %v\n", err)
			}
			return nil
		},
	}
	d.addFlag(cmd)
	return cmd
}

func newApply() *cobra.Command {
	var d daemon
	var files []string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or change Services, EndpointSlices and Nodes from YAML",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return errors.New("apply: no -f FILE; want a file of objects, or - for standard input")
			}
			objs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			r := &apiv1.ApplyRequest{}
			for _, o := range objs {
				doc, err := control.Encode(o)
				if err != nil {
					return err
				}
				r.Documents = append(r.Documents, doc)
			}
			return d.call(cmd.Context(), func(c *apiv1.Client) error {
				reply, err := c.Apply(cmd.Context(), r)
				for _, x := range reply.GetResults() {
					change := strings.ToLower(strings.TrimPrefix(x.GetChange().String(), "CHANGE_"))
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s %s\n", strings.ToLower(x.GetKind()), x.GetName(), change)
				}
				return err
			})
		},
	}
	d.addFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "`FILE` with objects, several documents allowed; - for standard input")
	return cmd
}

func newDelete() *cobra.Command {
	var d daemon
	var files []string
	var namespace string
	cmd := &cobra.Command{
		Use:   "delete (-f FILE | KIND NAME)",
		Short: "Delete Services, EndpointSlices and Nodes",
		Example: `  vswitch delete service web -n default
  vswitch delete node old    # frees its pod CIDRs`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(files) > 0 && len(args) == 0 || len(files) == 0 && len(args) == 2 {
				return nil
			}
			return fmt.Errorf("%d arguments; want -f FILE, or KIND NAME such as \"service web\"", len(args))
		},
		ValidArgs: []string{"service", "endpointslice", "node"},
		RunE: func(cmd *cobra.Command, args []string) error {
			var wanted []*apiv1.DeleteRequest
			if len(args) == 2 {
				wanted = append(wanted, &apiv1.DeleteRequest{Kind: args[0], Namespace: namespace, Name: args[1]})
			}
			objs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			for _, o := range objs {
				wanted = append(wanted, &apiv1.DeleteRequest{
					Kind: control.KindOf(o).String(), Namespace: o.GetNamespace(), Name: o.GetName(),
				})
			}
			return d.call(cmd.Context(), func(c *apiv1.Client) error {
				var errs []error
				for _, r := range wanted {
					if _, err := c.Delete(cmd.Context(), r); err != nil {
						errs = append(errs, plain(err))
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s/%s deleted\n", strings.ToLower(r.GetKind()), r.GetName())
				}
				return errors.Join(errs...)
			})
		},
	}
	d.addFlag(cmd)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "`FILE` with the objects to delete; - for standard input")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "`NAMESPACE` of what is deleted")
	return cmd
}

// readFiles decodes every file; the error names the one that is wrong.
func readFiles(stdin io.Reader, files []string) ([]control.Object, error) {
	var all []control.Object
	for _, f := range files {
		text, err := readFile(stdin, f)
		if err != nil {
			return nil, fmt.Errorf("-f %s: %w", f, err)
		}
		objs, err := control.Decode(text)
		if err != nil {
			return nil, fmt.Errorf("-f %s: %w", f, err)
		}
		all = append(all, objs...)
	}
	return all, nil
}

func readFile(stdin io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

func newGet() *cobra.Command {
	var d daemon
	var format string
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:       "get KIND",
		Short:     "List " + kindList(),
		Args:      oneKind,
		ValidArgs: kindNames(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if printers[format] == nil {
				return fmt.Errorf("-o %q: want table, json or yaml", format)
			}
			if watch {
				if !isKind(args[0], "flows") {
					return fmt.Errorf("get %s --watch: want flows; the others are listed once", args[0])
				}
				return d.call(cmd.Context(), func(c *apiv1.Client) error {
					return watchFlows(cmd.Context(), c, cmd.OutOrStdout(), format, interval)
				})
			}
			return d.call(cmd.Context(), func(c *apiv1.Client) error {
				return printers[format](cmd.OutOrStdout(), args[0], c.Rows(cmd.Context(), args[0]))
			})
		},
	}
	d.addFlag(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "table", "`FORMAT`: table, json or yaml")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show flows as they change: the busiest on a terminal, else a line for each change (-o json: an object a line)")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "`TIME` between two looks of --watch")
	// Its error is a flag that doesn't exist or is completed twice.
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
	return cmd
}
